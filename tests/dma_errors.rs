//! Every variant of every error of the DMA layer is produced by some test, by name. This checks that none was forgotten;
//! the tests themselves check when it comes.

use std::path::Path;

/// The variants of an enum in a source text.
fn variants(text: &str, name: &str) -> Vec<String> {
    let start = text.find(&format!("pub enum {name} {{")).expect("the enum is there");
    let body = &text[start..];
    let body = &body[body.find('{').expect("it has a body") + 1..body.find("\n}").expect("it ends")];
    let at_top = |line: &&str| line.starts_with("    ") && !line.starts_with("     ");
    let names =
        body.lines().filter(at_top).map(str::trim).filter(|line| line.starts_with(char::is_uppercase));
    names.map(|line| line.chars().take_while(|c| c.is_alphanumeric()).collect()).collect()
}

#[test]
fn every_variant_of_every_error_is_named_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| std::fs::read_to_string(root.join(path)).expect("a source can be read");
    let tests: String = std::fs::read_dir(root.join("tests"))
        .expect("the tests are there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            name.starts_with("dma_") && name.ends_with(".rs") && name != "dma_errors.rs"
        })
        .map(|path| std::fs::read_to_string(path).expect("a test can be read"))
        .collect();
    let mut missing = Vec::new();
    let mut seen = 0;
    for (path, name) in [
        ("src/dma/error.rs", "DmaError"),
        ("src/dma/iova_error.rs", "IovaError"),
        ("src/dma/pasid.rs", "PasidError"),
        ("src/dma/p2p.rs", "TopologyError"),
        ("src/dma/segments.rs", "SegmentError"),
        ("src/dma/convert/nvme.rs", "NvmeError"),
        ("src/ports/iommu.rs", "IommuError"),
        ("src/ports/pasid_port.rs", "AttachError"),
    ] {
        let names = variants(&read(path), name);
        assert!(names.len() > 1, "{name} in {path} has variants");
        seen += names.len();
        let unnamed = names.into_iter().map(|variant| format!("{name}::{variant}"));
        missing.extend(unnamed.filter(|full| !tests.contains(full.as_str())));
    }
    assert!(seen > 50, "only {seen} variants were found");
    assert!(missing.is_empty(), "no test produces {}", missing.join(", "));
}
