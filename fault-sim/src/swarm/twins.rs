//! Rules that can be switched off, so that the simulation can be seen to notice.

use granule::sync::Rule;

/// The rules that this simulation finds broken, the rule of the design's section 6 that each belongs to, and within how
/// many seeds from 0 on.
///
/// Not among them: that giving a lock back releases what was written under it (one thread cannot see that), and
/// counting links in one step (`dma`; the models have it).
pub const TWINS: &[(Rule, u8, u64)] = &[
    (Rule::SequenceAtCommit, 3, 20_000),
    (Rule::InTransitBeforeTake, 1, 200),
    (Rule::GateWaits, 3, 200),
    (Rule::WakeAfterTransit, 5, 200),
    (Rule::CommitWhatIsOwned, 1, 200),
    (Rule::OneMover, 1, 200),
    (Rule::UnmapBeforeCopy, 1, 200),
    (Rule::SlotsStayWithMover, 1, 3_000),
    (Rule::QuiesceBeforeRead, 3, 200),
    (Rule::LookAgain, 3, 3_000),
    (Rule::ReserveOnce, 1, 3_000),
    (Rule::LockWaits, 2, 200),
    (Rule::LockStaysContended, 2, 200),
    (Rule::GateIsLookedAt, 3, 200),
    (Rule::ArmedWhileAway, 1, 200),
    (Rule::WakeOnce, 5, 200),
    (Rule::LookAgainIfAnotherFollows, 3, 20_000),
    (Rule::PopulateOutside, 2, 200),
    (Rule::PartialIsPartial, 4, 200),
    (Rule::FaultsAreKept, 5, 200),
    (Rule::LadderClimbs, 6, 200),
    (Rule::FailedCopyKeeps, 7, 200),
    (Rule::PolicyIsClipped, 8, 200),
    (Rule::SeedDecides, 10, 3_000),
    (Rule::DisarmedLast, 1, 20_000),
    (Rule::OwnerWhileThere, 1, 3_000),
];

/// A rule by its name.
///
/// # Errors
/// A sentence with the names.
pub fn rule_named(name: &str) -> Result<Rule, String> {
    let found = TWINS.iter().map(|(rule, ..)| *rule).find(|rule| format!("{rule:?}") == name);
    found.ok_or_else(|| {
        let names: Vec<_> = TWINS.iter().map(|(rule, ..)| format!("{rule:?}")).collect();
        format!("there is no rule {name:?}; the rules are {}", names.join(", "))
    })
}
