//! Costs from measured data, and where they can be used.

use fault_sim::trace::{Event, EventKind, TraceKind};

use super::support::{Folder, fails, object, said, write};

/// Migrations to the device of 1, 16 and 256 pages that take 2 us and 1 us for each page.
fn copies() -> Vec<Event> {
    let mut now = 0;
    let copy = |at: u64| {
        let pages = [1, 16, 256][(at % 3) as usize];
        let event = Event::range(now, 1 << 20 | at, pages, EventKind::Migration);
        now += 2000 + u64::from(pages) * 1000;
        Event { engine: 1, detail: 2, ..event }
    };
    (0..300).map(copy).collect()
}

#[test]
fn fitted_costs_are_costs() {
    let folder = Folder::new();
    write(&folder.file("m"), TraceKind::Migrations, &copies());
    let table = said(&folder, &["fit", "m", "-o", "c.json", "--base", "titan-v", "--name", "mine"]);
    for line in ["copy_in_ns                        2000", "copy_in_bytes_per_us              4096"] {
        assert!(table.contains(line), "no {line:?} in\n{table}");
    }
    assert!(table.contains("all others: as titan-v: the trace does not show them"), "{table}");
    said(&folder, &["gen", "stream", "--size", "8MiB", "-o", "t"]);
    let result = object(&folder, &["replay", "t", "--policy", "nvidia", "--cost", "c.json", "--json"]);
    assert_eq!(result["profile"], "mine");
    assert_eq!(
        (&result["cost"]["copy_in_ns"], &result["cost"]["interrupt_ns"]),
        (&2000.into(), &20_000.into())
    );
    // The same by hand: the file that is documented.
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.file("c.json")).expect("just written"))
            .expect("JSON");
    let page = include_str!("../../../docs/fit.md");
    for key in
        file.as_object().expect("an object").keys().chain(file["cost"].as_object().expect("costs").keys())
    {
        assert!(page.contains(&format!("`{key}`")), "docs/fit.md does not explain `{key}`");
    }
    let swept = said(&folder, &["sweep", "t", "--policy", "nvidia", "--cost", "c.json,ideal", "--csv"]);
    assert!(swept.contains(",mine,") && swept.contains(",ideal,"), "{swept}");
}

#[test]
fn what_holds_no_costs_is_refused() {
    let folder = Folder::new();
    said(&folder, &["gen", "stream", "--size", "8MiB", "-o", "t"]);
    fails(&folder, 2, &["fit", "t"], "shows nothing of what things cost: 0 migrations");
    fails(&folder, 2, &["fit", "absent"], "cannot be opened");
    write(&folder.file("m"), TraceKind::Migrations, &copies());
    fails(&folder, 2, &["fit", "m", "--base", "nothing"], "no profile and no file");
    fails(&folder, 1, &["fit", "m", "-o", "no/such/folder"], "cannot be written");
    let wrong = [
        (
            "{\"format\":\"granule-cost-1\",\"name\":\"n\",\"about\":\"a\",\"cost\":{\"map\":1}}",
            "holds no costs",
        ),
        ("{}", "holds no costs"),
        ("", "holds no costs"),
    ];
    for (text, why) in wrong {
        std::fs::write(folder.file("c"), text).expect("it can be written");
        fails(&folder, 2, &["replay", "t", "--cost", "c"], why);
    }
    said(&folder, &["fit", "m", "-o", "c"]);
    let text = std::fs::read_to_string(folder.file("c")).expect("just written");
    std::fs::write(folder.file("c"), text.replace("granule-cost-1", "granule-cost-2"))
        .expect("it can be written");
    fails(&folder, 2, &["replay", "t", "--cost", "c"], "granule-cost-2");
}
