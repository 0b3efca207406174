//! The simulated service: many seeds, nothing wrong, nothing untried, and the same again.

use fault_sim::swarm::{Counts, Plan, Stacks, run};

/// What a seed runs before its actors begin nothing new.
const STEPS: u64 = 1000;

#[test]
fn nothing_is_wrong_and_nothing_is_left_untried() {
    let mut stacks = Stacks::default();
    let mut counts = Counts::default();
    for seed in 0..6000 {
        let report = run(&Plan::new(seed, STEPS), &mut stacks);
        assert_eq!(report.violation, None, "seed {seed}");
        assert!(report.steps >= STEPS, "seed {seed} ended after {} steps", report.steps);
        counts.add(&report.counts);
    }
    assert_eq!(counts.never(), [""; 0], "of these nothing was tried:\n{}", counts.table());
}

#[test]
fn a_seed_does_the_same_again() {
    let (mut stacks, mut fresh) = (Stacks::default(), Stacks::default());
    for seed in 0..200 {
        let plan = Plan::new(seed, STEPS);
        let first = run(&plan, &mut stacks);
        assert_eq!(first, run(&plan, &mut fresh), "seed {seed}");
        let other = run(&Plan { schedule: 1, ..plan }, &mut stacks);
        assert_ne!(first.digest, other.digest, "seed {seed} under another schedule");
    }
}
