//! One rule of the state machine is switched off after the other, and the simulation finds each within its number of
//! seeds. Run with `--features twins`. One test: the switch is the process's.

use fault_sim::swarm::{Plan, Stacks, TWINS, run, shrink};
use granule::sync::{Rule, switch_off};

const STEPS: u64 = 1000;

#[test]
fn every_planted_bug_is_found_and_shrunk() {
    let mut stacks = Stacks::default();
    let mut missed = Vec::new();
    for (rule, section, within) in TWINS {
        switch_off(Some(*rule));
        let found = (0..*within).find(|seed| {
            let plan = Plan::new(*seed, STEPS);
            let report = run(&plan, &mut stacks);
            let is_repeated = *rule == Rule::SeedDecides;
            report.violation.is_some() || (is_repeated && run(&plan, &mut stacks) != report)
        });
        let Some(seed) = found else {
            missed.push(format!("{rule:?} (rule {section}): not within {within} seeds"));
            continue;
        };
        match shrink(&Plan::new(seed, STEPS), &mut stacks) {
            Some(shrunk) => {
                let again = run(&shrunk.plan, &mut stacks);
                assert_eq!(again.violation.as_ref(), Some(&shrunk.violation), "{rule:?}: shown again");
                let operations = shrunk.plan.only.map_or(0, |only| only.len());
                println!(
                    "{rule:?} (rule {section}): seed {seed}, {operations} operations, {} steps: {}",
                    shrunk.steps, shrunk.violation
                );
            }
            None => println!("{rule:?} (rule {section}): seed {seed} does something else each time"),
        }
        switch_off(None);
        assert_eq!(run(&Plan::new(seed, STEPS), &mut stacks).violation, None, "{rule:?}: not without it");
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}
