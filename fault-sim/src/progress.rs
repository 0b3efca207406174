//! A bar on a terminal, as wide as its line; nothing in a pipe.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far the work is, shown on standard error if that is a terminal. Can be told from any thread.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    /// Asked for each piece of work, so it is kept here and not looked up behind the bar's pointer.
    shown: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// Nothing is shown before something begins. The work is bytes.
    pub fn new() -> Self {
        Self::with("{msg:>8} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}")
    }

    /// As [`Progress::new`], for work that is counted in events.
    pub fn of_events() -> Self {
        Self::with("{msg:>8} [{wide_bar}] {human_pos}/{human_len} events, {per_sec}")
    }

    /// As [`Progress::new`], for work that is counted in seeds.
    pub fn of_seeds() -> Self {
        Self::with("{msg:>8} [{bar:40}] {human_pos}/{human_len} seeds, {per_sec}")
    }

    fn with(style: &str) -> Self {
        let shown = std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // A template that indicatif refuses leaves its own style in place.
        let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self { bar: bar.with_style(style), shown }
    }

    /// Begins a phase of `bytes` of work.
    pub fn begin(&self, name: &'static str, bytes: u64) {
        // The length comes first: a bar of nothing out of nothing is drawn full.
        self.bar.set_length(bytes);
        self.bar.reset();
        self.bar.set_message(name);
    }

    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        if self.shown {
            self.bar.inc(bytes);
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
