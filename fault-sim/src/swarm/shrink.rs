//! A failing plan, made smaller: fewer habits, fewer operations, and a schedule under which the same checker finds it.
//!
//! Without one operation the schedule means something else, so a smaller plan is tried under several schedules before it
//! counts as one that does not fail.

use super::fibers::Stacks;
use super::oracle::{Checker, Violation};
use super::plan::{Habit, Plan};
use super::run::{Report, run};

/// Schedules that a smaller plan is tried under, besides the one that it has.
const OTHER_SCHEDULES: u64 = 6;
/// Runs in all.
const MOST_RUNS: u32 = 6_000;

/// A plan that fails, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shrunk {
    /// The smallest plan that was found.
    pub plan: Plan,
    /// What is wrong with it.
    pub violation: Violation,
    /// Steps until that.
    pub steps: u64,
    /// Runs that finding it took.
    pub runs: u32,
}

struct Search<'s> {
    stacks: &'s mut Stacks,
    checker: Checker,
    runs: u32,
}

impl Search<'_> {
    /// The plan under a schedule with which it fails in the same way.
    fn fails(&mut self, plan: &Plan) -> Option<(Plan, Report)> {
        for other in 0..=OTHER_SCHEDULES {
            if self.runs >= MOST_RUNS {
                return None;
            }
            self.runs += 1;
            let schedule = if other == 0 { plan.schedule } else { other };
            let tried = Plan { schedule, ..plan.clone() };
            let report = run(&tried, self.stacks);
            if report.violation.as_ref().is_some_and(|violation| violation.checker == self.checker) {
                return Some((tried, report));
            }
        }
        None
    }
}

/// Makes a plan that was seen to fail smaller. `None`: it does not fail.
pub fn shrink(plan: &Plan, stacks: &mut Stacks) -> Option<Shrunk> {
    let first = run(plan, stacks);
    let checker = first.violation.as_ref()?.checker;
    let mut search = Search { stacks, checker, runs: 1 };
    let mut best = (plan.clone(), first);
    // What was begun is all that matters; named one by one it can be left out one by one.
    let named = Plan { only: Some(best.1.begun.clone()), ..plan.clone() };
    if let Some(found) = search.fails(&named) {
        best = found;
    }
    for habit in Habit::ALL {
        if best.0.habits().has(habit) {
            let mut without = best.0.without.clone();
            without.push(habit);
            if let Some(found) = search.fails(&Plan { without, ..best.0.clone() }) {
                best = found;
            }
        }
    }
    leave_out(&mut search, &mut best);
    let (plan, report) = best;
    Some(Shrunk { plan, violation: report.violation?, steps: report.steps, runs: search.runs })
}

/// Leaves out operations: halves, quarters, and so on down to single ones, until none can be spared.
fn leave_out(search: &mut Search<'_>, best: &mut (Plan, Report)) {
    let Some(mut only) = best.0.only.clone() else { return };
    let mut size = only.len().div_ceil(2);
    while size > 0 {
        let mut spared = false;
        let mut at = 0;
        while at < only.len() {
            let end = (at + size).min(only.len());
            let fewer: Vec<_> = only[..at].iter().chain(&only[end..]).copied().collect();
            match search.fails(&Plan { only: Some(fewer.clone()), ..best.0.clone() }) {
                Some(found) => {
                    *best = found;
                    only = fewer;
                    spared = true;
                }
                None => at = end,
            }
        }
        size = if size == 1 && spared { 1 } else { size / 2 };
    }
}
