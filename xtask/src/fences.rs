//! Commands in documents that are meant to be run: fences that open with `sh run`.

/// One command, with the place where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Fenced {
    pub line: usize,
    pub command: String,
}

/// The commands of every fence marked `sh run`: one per line; a line that ends in a backslash goes on.
pub fn to_run(text: &str) -> Vec<Fenced> {
    let mut found = Vec::new();
    let mut open: Option<bool> = None;
    let mut partial: Option<Fenced> = None;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        if let Some(info) = trimmed.strip_prefix("```") {
            open = match open {
                Some(_) => None,
                None => Some(info.split_whitespace().eq(["sh", "run"])),
            };
            found.extend(partial.take());
            continue;
        }
        if open != Some(true) || (partial.is_none() && (trimmed.is_empty() || trimmed.starts_with('#'))) {
            continue;
        }
        let (part, goes_on) = match trimmed.trim_end().strip_suffix('\\') {
            Some(part) => (part.trim_end(), true),
            None => (trimmed.trim_end(), false),
        };
        match &mut partial {
            Some(fenced) => {
                fenced.command.push(' ');
                fenced.command.push_str(part);
            }
            None => partial = Some(Fenced { line: index + 1, command: part.to_owned() }),
        }
        if !goes_on {
            found.extend(partial.take());
        }
    }
    found.extend(partial);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_fences_are_run() {
        let text = "\
# Title
```sh run
cargo run -- run
# a comment
cargo run -- run \\
    --workload sum

```
```sh
rm -rf /
```
```text
sh run
```
  ```sh run
  true
  ```
";
        let commands: Vec<_> = to_run(text).into_iter().map(|f| (f.line, f.command)).collect();
        assert_eq!(
            commands,
            [
                (3, "cargo run -- run".to_owned()),
                (5, "cargo run -- run --workload sum".to_owned()),
                (16, "true".to_owned()),
            ]
        );
    }
}
