//! A row that a bench wrote, and the page that is made of all rows.

use std::fmt::Write;

use serde::Deserialize;

/// What a figure has to keep.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(tag = "kind", content = "value", rename_all = "snake_case")]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// Reported only.
    None,
}

/// What the bound is a bound of.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Value {
    Ratio,
    Figure,
}

/// One figure with its floor and its bound.
#[derive(Deserialize, Clone, Debug)]
pub struct Measured {
    question: String,
    unit: String,
    floor: Option<f64>,
    figure: f64,
    ratio: Option<f64>,
    spread: [f64; 2],
    bound_of: Value,
    bound: Bound,
    rounds: usize,
    note: String,
}

/// Three or four figures of a number.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl Measured {
    fn value(&self) -> Option<f64> {
        match self.bound_of {
            Value::Ratio => self.ratio,
            Value::Figure => Some(self.figure),
        }
    }

    /// Whether the bound is kept. A value that is missing or no number keeps nothing.
    pub fn is_kept(&self) -> bool {
        match (self.bound, self.value()) {
            (Bound::None, _) => true,
            (Bound::AtMost(most), Some(value)) => value <= most,
            (Bound::AtLeast(least), Some(value)) => value >= least,
            (_, None) => false,
        }
    }

    fn bound(&self) -> String {
        let of = if self.bound_of == Value::Ratio { "ratio" } else { "figure" };
        match self.bound {
            Bound::AtMost(most) => format!("{of} <= {most}"),
            Bound::AtLeast(least) => format!("{of} >= {least}"),
            Bound::None => "-".to_owned(),
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.bound, self.is_kept()) {
            (Bound::None, _) => "reported",
            (_, true) => "kept",
            (_, false) => "**beyond**",
        }
    }

    /// For the terminal.
    pub fn sentence(&self) -> String {
        let ratio = self.ratio.map_or(String::new(), |ratio| format!(", ratio {}", short(ratio)));
        let bound = if self.bound == Bound::None { "no bound".to_owned() } else { self.bound() };
        format!("{}: {} {}{ratio} ({bound})", self.question, short(self.figure), self.unit)
    }

    fn line(&self) -> String {
        let or_dash = |value: Option<f64>| value.map_or("-".to_owned(), short);
        format!(
            "| {} | {} | {} | {} | {} | {} [{}, {}] | {} | {} | {} |",
            self.question,
            self.unit,
            or_dash(self.floor),
            short(self.figure),
            or_dash(self.ratio),
            if self.ratio.is_some() { "ratio" } else { "figure" },
            short(self.spread[0]),
            short(self.spread[1]),
            self.rounds,
            self.bound(),
            self.verdict(),
        )
    }
}

/// The page: what was measured when and where, every row, every note.
pub fn page(rows: &[Measured], circumstances: &[(&'static str, String)]) -> String {
    let mut page = String::from(
        "# Measurements\n\nWritten by `cargo xtask measure`, which fails where a row is beyond its bound. Do not edit.\n\n",
    );
    for (what, said) in circumstances {
        let _ = writeln!(page, "- {what}: {said}");
    }
    page.push_str(
        "\nA floor is raw code in the same run: warm, no call into the library. Floor and figure take turns; floor and \
         figure are medians over the rounds, the ratio is the median of the ratios of single rounds. A figure without \
         a floor is the best round. The spread runs from the 10th to the 90th percentile. A ratio of times says how \
         many times as long as the floor; a ratio of speeds (GB/s) says which part of the floor's speed is reached.\n\n\
         | question | unit | floor | figure | ratio | spread of | rounds | bound | verdict |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    rows.iter().for_each(|row| {
        let _ = writeln!(page, "{}", row.line());
    });
    page.push_str("\n## Notes\n");
    for row in rows.iter().filter(|row| !row.note.is_empty()) {
        let _ = writeln!(page, "- {}: {}.", row.question, row.note);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bound: &str, ratio: &str) -> Measured {
        let text = format!(
            r#"{{"question":"q","unit":"us","floor":2.0,"figure":3.0,"ratio":{ratio},"spread":[1.4,1.6],
                "bound_of":"ratio","bound":{bound},"rounds":9,"note":"n"}}"#
        );
        serde_json::from_str(&text).expect("a row as benches write it")
    }

    #[test]
    fn a_bound_is_kept_up_to_its_very_value() {
        let most = r#"{"kind":"at_most","value":1.5}"#;
        let least = r#"{"kind":"at_least","value":1.5}"#;
        assert!(row(most, "1.5").is_kept() && row(least, "1.5").is_kept());
        assert!(!row(most, "1.51").is_kept() && !row(least, "1.49").is_kept());
        assert!(!row(most, "null").is_kept(), "what was not measured was not kept");
        assert!(row(r#"{"kind":"none"}"#, "99.0").is_kept());
    }

    #[test]
    fn the_page_names_every_row_and_what_is_beyond() {
        let rows = [row(r#"{"kind":"at_most","value":1.0}"#, "1.5")];
        let page = page(&rows, &[("commit", "abc".into())]);
        assert!(page.contains("- commit: abc\n"));
        assert!(
            page.contains(
                "| q | us | 2.00 | 3.00 | 1.50 | ratio [1.40, 1.60] | 9 | ratio <= 1 | **beyond** |"
            )
        );
        assert!(page.contains("- q: n.\n"));
    }
}
