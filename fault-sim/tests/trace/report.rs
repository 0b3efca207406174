//! Reports: one page that needs nothing else, and pictures beside it.

use super::support::{Folder, fails, said};

fn page(folder: &Folder, name: &str) -> String {
    let page = std::fs::read_to_string(folder.file(name)).expect("the page was written");
    // Nothing is fetched and nothing runs: the one address is the name of SVG.
    let rest = page.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "src=", "href=", "<script", "@import", "url("] {
        assert!(!rest.contains(word), "the page has {word:?}");
    }
    page
}

/// Width, height and how many of the pixels are not white.
fn png(folder: &Folder, name: &str) -> (u32, u32, usize) {
    let file = std::fs::File::open(folder.file(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("it fits")];
    let info = reader.next_frame(&mut pixels).expect("pixels");
    let inked = pixels.chunks(3).filter(|rgb| *rgb != [255, 255, 255]).count();
    (info.width, info.height, inked)
}

#[test]
fn from_a_trace_to_a_page() {
    let folder = Folder::new();
    said(&folder, &["gen", "kv-cache", "--size", "32MiB", "--cpu", "2%", "-o", "t"]);
    let told = said(&folder, &["report", "t", "-o", "r.html"]);
    assert!(told.starts_with("r.html: 6 pictures"), "{told}");
    let drawn = page(&folder, "r.html");
    assert_eq!(drawn.matches("<svg").count(), 6);
    for word in ["nvidia", "gpusvm", "granule", "driver_copy_in_ns", "touched by the CPU", "LRU in 4 KiB"] {
        assert!(drawn.contains(word), "no {word:?} on the page");
    }
    for name in ["timeline", "residency", "traffic", "misses", "comparison", "costs"] {
        let svg = std::fs::read_to_string(folder.file(&format!("r-{name}.svg"))).expect("an SVG");
        assert!(svg.starts_with("<svg") && svg.contains("<text"), "{name}");
        assert!(drawn.contains(&svg), "{name} is on the page as it is in its file");
        let (width, height, inked) = png(&folder, &format!("r-{name}.png"));
        assert!(width == 960 && height > 100 && inked > 2000, "{name}: {width} x {height}, {inked}");
    }
    // The same again is the same, whatever the threads did.
    said(&folder, &["report", "t", "-o", "r.html"]);
    assert_eq!(page(&folder, "r.html"), drawn);
}

#[test]
fn results_are_drawn_as_they_are() {
    let folder = Folder::new();
    said(&folder, &["gen", "zipf", "--size", "32MiB", "--faults", "20000", "-o", "t"]);
    let policies = ["--policy", "nvidia,lru-2m", "--set", "tree-threshold=25,75"];
    said(&folder, &[&["sweep", "t", "-o", "s"], &policies[..]].concat());
    said(&folder, &["replay", "t", "--policy", "nvidia,amd", "-o", "a"]);
    // Nothing is played again: the trace is not needed any more.
    std::fs::remove_file(folder.file("t")).expect("it is there");
    let told = said(&folder, &["report", "s", "a", "-o", "r.html"]);
    assert!(told.starts_with("r.html: 5 pictures"), "{told}");
    let drawn = page(&folder, "r.html");
    for word in ["nvidia (tree-threshold=25)", "Misses by device memory", "total time", "lru-2m"] {
        assert!(drawn.contains(word), "no {word:?} on the page");
    }
    for name in ["1-misses", "1-comparison", "1-costs", "2-comparison", "2-costs"] {
        assert!(png(&folder, &format!("r-{name}.png")).2 > 1000, "{name}");
    }
}

#[test]
fn what_is_no_trace_and_no_result_is_refused() {
    let folder = Folder::new();
    std::fs::write(folder.file("object"), "{\"some\":1}").expect("the folder can be written");
    std::fs::write(folder.file("empty"), "").expect("the folder can be written");
    fails(&folder, 2, &["report", "object"], "neither a trace nor a result");
    fails(&folder, 2, &["report", "empty"], "empty");
    fails(&folder, 2, &["report", "absent"], "cannot be read");
    fails(&folder, 2, &["report"], "required");
    said(&folder, &["gen", "stream", "--size", "8MiB", "-o", "t"]);
    fails(&folder, 2, &["report", "t", "--policy", "nothing"], "no policy");
    fails(&folder, 1, &["report", "t", "-o", "no/such/page.html"], "cannot be written");
}

/// From another tool's file to a table and to a picture in one command each.
#[test]
fn a_foreign_file_is_taken_as_it_is() {
    let folder = Folder::new();
    let lines: String = (0..2000).map(|at| format!("{},{:#x},r\n", at * 100, (at % 700) * 4096)).collect();
    std::fs::write(folder.file("f.csv"), format!("time,address,access\n{lines}")).expect("it can be written");
    let rows = said(&folder, &["sweep", "f.csv", "--policy", "nvidia,lru-4k", "--csv"]);
    assert_eq!(rows.lines().count(), 1 + 2, "less than the least device memory is the least: {rows}");
    said(&folder, &["report", "f.csv", "-o", "r.html"]);
    assert!(page(&folder, "r.html").contains("imported from"));
}
