//! Traces and what is made of them: files good and hostile, policies on traces small enough to be played by hand, and
//! the commands as a person runs them.

mod bounds;
mod commands;
mod differ;
mod fit;
mod hostile;
mod nvidia;
mod report;
mod support;
mod sweep;
