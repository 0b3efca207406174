//! Counting what ran: every number in the closing line comes from here, and gets here from the output of
//! something that was really executed.

/// How many checks passed, failed and were skipped, and why.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    /// One line per failed check.
    pub failures: Vec<String>,
    /// One line per skipped check, with its reason.
    pub skips: Vec<String>,
}

impl Tally {
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        self.failed += 1;
        self.failures.push(what.into());
    }

    pub fn skip(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        self.skips.push(format!("{what}: {why}"));
    }

    pub fn absorb(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.skips.extend(other.skips);
    }

    /// Enters one line that the Rust test harness printed. Counts are taken from the lines of single tests,
    /// since the harness's own sum has no names.
    pub fn read_harness_line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test ") else { return };
        // Output of a test can stand between its name and its verdict; the verdict is at the end then.
        let Some((name, verdict)) = rest.split_once(" ... ") else { return };
        if verdict == "ok" || verdict.ends_with(" ok") {
            self.pass();
        } else if verdict == "FAILED" || verdict.ends_with(" FAILED") {
            self.fail(name);
        } else if let Some(why) = verdict.strip_prefix("ignored") {
            let why = why.trim_start_matches([',', ' ']);
            self.skip(name, if why.is_empty() { "ignored without a reason" } else { why });
        }
    }

    /// The last line of a run.
    pub fn closing_line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn harness_lines_are_counted_by_their_verdict() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test units::mask::tests::runs ... ok",
            "test os::take ... FAILED",
            "test vfio::real ... ignored, needs an IOMMU group",
            "test later ... ignored",
            "test src/lib.rs - Svm (line 12) - compile ... ok",
            "test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out",
            "a test of something ... ok",
        ] {
            tally.read_harness_line(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.skipped), (2, 1, 2));
        assert_eq!(tally.failures, ["os::take"]);
        assert_eq!(tally.skips, ["vfio::real: needs an IOMMU group", "later: ignored without a reason"]);
        assert_eq!(tally.closing_line(), "2 passed, 1 failed, 2 skipped");
    }
}
