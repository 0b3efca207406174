//! What of a trace and of results can be seen in a picture, in memory that does not grow with the trace.
//!
//! | file | is |
//! |---|---|
//! | `timeline` | which addresses were touched when, in a grid that grows coarser as it has to |
//! | `reuse` | how many touches would miss under LRU, for every capacity at once, from a sample of the pages |
//! | `results` | what pictures show of results |
//! | `series` | what a replay had moved by when, at a few hundred moments |

mod results;
mod reuse;
mod series;
mod timeline;

pub use results::{Results, over_time};
pub use reuse::Reuse;
pub use series::{Sample, Series};
pub use timeline::{Row, Timeline};
