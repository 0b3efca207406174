//! The command-line program; everything is in the library.

fn main() -> std::process::ExitCode {
    fault_sim::main(std::env::args_os())
}
