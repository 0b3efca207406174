//! The columns of a trace.

use std::sync::Arc;

use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::schema::types::{Type, TypePtr};

/// One column: its name, how it is stored, its logical width in bits (unsigned).
pub(super) struct Column {
    pub name: &'static str,
    pub physical: Physical,
    pub bits: i8,
}

/// The columns in the order of the file.
pub(super) const COLUMNS: [Column; 7] = [
    Column { name: "time_ns", physical: Physical::INT64, bits: 64 },
    Column { name: "page", physical: Physical::INT64, bits: 64 },
    Column { name: "pages", physical: Physical::INT32, bits: 32 },
    Column { name: "engine", physical: Physical::INT32, bits: 16 },
    Column { name: "kind", physical: Physical::INT32, bits: 8 },
    Column { name: "access", physical: Physical::INT32, bits: 8 },
    Column { name: "detail", physical: Physical::INT32, bits: 8 },
];

/// The schema of the file.
pub(super) fn schema() -> Result<TypePtr, parquet::errors::ParquetError> {
    let fields = COLUMNS.iter().map(|column| {
        Type::primitive_type_builder(column.name, column.physical)
            .with_repetition(Repetition::REQUIRED)
            .with_logical_type(Some(LogicalType::integer(column.bits, false)))
            .build()
            .map(Arc::new)
    });
    let fields = fields.collect::<Result<Vec<_>, _>>()?;
    Type::group_type_builder("trace").with_fields(fields).build().map(Arc::new)
}
