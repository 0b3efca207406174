/// How the time within which two moves of a page count as thrashing changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LapseRule {
    /// It does not: drivers before 590.44.01.
    Fixed,
    /// As the driver from 590.44.01 on is written: a signed 8-bit counter is compared with an unsigned threshold, so that
    /// the first short vote makes the lapse longer.
    AsWritten,
    /// As it was meant: 32 votes in one direction.
    AsIntended,
}

/// Votes in one direction that change the lapse: `uvm_perf_lapse_vote_threshold`.
const VOTES: i8 = 32;
/// The lapse grows only while it is below this.
const CAP_NS: u64 = 500_000_000;
/// By how much it grows at most.
const STEP_NS: u64 = 50_000_000;

/// The lapse, and the votes on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lapse {
    rule: LapseRule,
    ns: u64,
    votes: i8,
}

impl Lapse {
    /// Begins at `ns`.
    pub fn new(rule: LapseRule, ns: u64) -> Self {
        Self { rule, ns, votes: 0 }
    }

    /// The lapse now.
    pub fn ns(&self) -> u64 {
        self.ns
    }

    /// Votes with the time between two moves of a page.
    pub fn vote(&mut self, gap_ns: u64) {
        if self.rule == LapseRule::Fixed {
            return;
        }
        self.votes = self.votes.wrapping_add(if gap_ns < self.ns { -1 } else { 1 });
        let (grows, shrinks) = match self.rule {
            LapseRule::Fixed => return,
            LapseRule::AsWritten => {
                let unsigned = i32::from(self.votes) as u32 >= VOTES as u32;
                (unsigned && self.ns < CAP_NS, self.votes >= VOTES)
            }
            LapseRule::AsIntended => (self.votes >= VOTES && self.ns < CAP_NS, self.votes <= -VOTES),
        };
        if grows {
            self.ns += (self.ns / 8).min(STEP_NS);
            self.votes /= 2;
        } else if shrinks {
            self.ns -= self.ns / 8;
            self.votes /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short_votes(rule: LapseRule, count: usize) -> Vec<u64> {
        let mut lapse = Lapse::new(rule, 500_000);
        (0..count)
            .map(|_| {
                lapse.vote(1);
                lapse.ns()
            })
            .collect()
    }

    #[test]
    fn as_written_short_votes_make_it_longer() {
        let lapses = short_votes(LapseRule::AsWritten, 200);
        assert!(lapses[..5].iter().map(|ns| ns / 1000).eq([562, 632, 711, 800, 901]));
        assert!(lapses[57] < CAP_NS);
        assert!((511_750_000..511_850_000).contains(&lapses[58]), "59 votes: 511.8 ms, not {}", lapses[58]);
        assert!(lapses[58..187].iter().all(|ns| *ns == lapses[58]));
        assert!(lapses[187] < lapses[186], "the counter wraps at vote 188");
        assert_eq!(lapses.windows(2).filter(|pair| pair[1] < pair[0]).count(), 1);
    }

    #[test]
    fn as_intended_many_short_votes_make_it_shorter() {
        let lapses = short_votes(LapseRule::AsIntended, 48);
        assert_eq!((lapses[30], lapses[31], lapses[46], lapses[47]), (500_000, 437_500, 437_500, 382_813));
        assert_eq!(short_votes(LapseRule::Fixed, 100)[99], 500_000);
    }
}
