//! What other tools wrote: small good files, made by the real tool or typed from the description of its format, and
//! what becomes of them when they are cut, garbled, empty or huge.

mod csv;
mod ftrace;
mod hostile;
mod huge;
mod kfd;
mod lackey;
mod nsys;
mod perf_script;
mod perf_trace;
mod prq;
mod support;
mod uvm_eval;
mod uvm_tools;
mod xe;
