//! A page in one file: pictures and tables, no script, nothing that is fetched.

use std::fmt::Write;

/// What stands on a page, in its order.
#[derive(Clone, Debug)]
pub enum Piece {
    /// A heading.
    Heading(String),
    /// A sentence.
    Sentence(String),
    /// Names and what they are.
    Facts(Vec<(String, String)>),
    /// A picture as SVG, and what it shows.
    Picture {
        /// The SVG element.
        svg: String,
        /// What it shows.
        caption: String,
    },
    /// A table: its head, and rows that begin with a name.
    Table(Vec<String>, Vec<Vec<String>>),
}

const STYLE: &str = "body{font:15px/1.5 sans-serif;color:#000;background:#fff;max-width:1000px;margin:24px auto;\
padding:0 16px}figure{margin:20px 0}figcaption{max-width:900px}svg{max-width:100%;height:auto}\
table{border-collapse:collapse;margin:16px 0}td,th{border-bottom:1px solid #bbb;padding:2px 12px;text-align:right}\
td:first-child,th:first-child{text-align:left}dl{display:grid;grid-template-columns:max-content 1fr;gap:0 16px}\
dd{margin:0;overflow-wrap:anywhere}@media print{figure{break-inside:avoid}}";

/// A text as it stands in a page.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page.
pub fn page(title: &str, pieces: &[Piece]) -> String {
    let title = escaped(title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n"
    );
    for piece in pieces {
        let _ = match piece {
            Piece::Heading(text) => writeln!(out, "<h2>{}</h2>", escaped(text)),
            Piece::Sentence(text) => writeln!(out, "<p>{}</p>", escaped(text)),
            Piece::Facts(facts) => {
                let fact = |(name, said): &(String, String)| {
                    format!("<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(said))
                };
                writeln!(out, "<dl>{}</dl>", facts.iter().map(fact).collect::<String>())
            }
            Piece::Picture { svg, caption } => {
                writeln!(out, "<figure>{svg}<figcaption>{}</figcaption></figure>", escaped(caption))
            }
            Piece::Table(head, rows) => writeln!(out, "{}", table(head, rows)),
        };
    }
    out.push_str("</body></html>\n");
    out
}

fn table(head: &[String], rows: &[Vec<String>]) -> String {
    let cells = |kind: &str, cells: &[String]| {
        let cell = |cell: &String| format!("<{kind}>{}</{kind}>", escaped(cell));
        format!("<tr>{}</tr>\n", cells.iter().map(cell).collect::<String>())
    };
    let rows: String = rows.iter().map(|row| cells("td", row)).collect();
    format!("<table>\n<thead>{}</thead>\n<tbody>{rows}</tbody></table>", cells("th", head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_text_stays_text() {
        let pieces = [
            Piece::Sentence("a < b & \"c\"".to_owned()),
            Piece::Table(vec!["x".to_owned()], vec![vec!["<script>".to_owned()]]),
        ];
        let page = page("<t>", &pieces);
        assert!(page.contains("<title>&lt;t&gt;</title>") && page.contains("a &lt; b &amp; &quot;c&quot;"));
        assert!(!page.contains("<script>"));
    }
}
