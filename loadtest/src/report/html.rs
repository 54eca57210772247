//! A report as one page for people: no script, no network, nothing but this file. Light and dark as
//! the reader likes it, wide or narrow. Everything that a report says is escaped.

use std::fmt::Write as _;

use super::chart;
use super::data::{Cell, Latency, Report, Section, Throughput, Warning};
use super::markup::escape;
use super::number::{number, percent, ratio, spread};

const STYLE: &str = include_str!("page.css");

/// The page.
pub fn page(report: &Report) -> String {
    let mut out = String::new();
    let commit = report.commit.as_deref().map(|commit| format!(" · {}", escape(commit))).unwrap_or_default();
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>Campanile under load</title>\
         <style>{STYLE}</style></head><body><main><header><h1>Campanile under load</h1>\
         <p>{} · {}{commit}</p><p>{}</p><p><code>{}</code></p></header>",
        escape(&report.started),
        escape(&report.version),
        escape(&report.machine.line()),
        escape(&report.command)
    );
    if report.scenarios.len() > 1 {
        summary(report, &mut out);
    }
    for (index, one) in report.scenarios.iter().enumerate() {
        section(index, one, &mut out);
    }
    out + "</main></body></html>\n"
}

/// The closing table.
fn summary(report: &Report, out: &mut String) {
    out.push_str(
        "<section><h2>In short</h2><div class=\"wide\"><table><thead><tr><th><th class=\"n\">ours\
         <th class=\"n\">floor<th class=\"n\">ratio<th class=\"n\">spread</tr></thead><tbody>",
    );
    for (index, section) in report.scenarios.iter().enumerate() {
        let link = format!("<a href=\"#s{index}\">{}</a>", escape(&section.title));
        let _ = write!(out, "<tr class=\"first\"><td colspan=\"5\">{link} {}", marks(section));
        for row in section.figures.iter().filter(|row| row.compared) {
            let median = |side| row.cell(side)?.spread.map(|spread| number(spread.median));
            let ours = section.sides.iter().find(|side| *side != "floor").and_then(|side| median(side));
            let width = row.cell("gateway").and_then(Cell::width).map(percent);
            let ratio = row.ratio("floor").map(|ratio| format!("{:.3}", ratio.median));
            let _ = write!(out, "<tr><td>{}", escape(&row.name));
            for cell in [ours, median("floor"), ratio, width] {
                let _ = write!(out, "<td class=\"n\">{}", cell.unwrap_or_default());
            }
        }
    }
    out.push_str("</tbody></table></div></section>");
}

fn marks(section: &Section) -> String {
    match (&section.failed, section.warnings.len()) {
        (Some(_), _) => "<b class=\"bad\">failed</b>".to_owned(),
        (None, 0) => String::new(),
        (None, 1) => "<b class=\"warn\">1 warning</b>".to_owned(),
        (None, many) => format!("<b class=\"warn\">{many} warnings</b>"),
    }
}

fn section(index: usize, section: &Section, out: &mut String) {
    let _ = write!(out, "<section id=\"s{index}\"><h2>{}</h2>", escape(&section.title));
    for condition in &section.conditions {
        let _ = write!(out, "<p>{}</p>", escape(condition));
    }
    if let Some(reason) = &section.failed {
        let _ = write!(out, "<p class=\"bad\"><b>Failed.</b> {}</p>", escape(reason));
    }
    if !section.warnings.is_empty() {
        out.push_str("<ul class=\"warn\">");
        for Warning { code, text } in &section.warnings {
            let _ = write!(out, "<li>{} <code>{}</code></li>", escape(text), escape(code));
        }
        out.push_str("</ul>");
    }
    if !section.figures.is_empty() {
        figures(section, out);
    }
    charts(section, out);
    let _ = write!(out, "<p><code>{}</code></p></section>", escape(&section.command));
}

fn figures(section: &Section, out: &mut String) {
    let others: Vec<&String> = section
        .sides
        .iter()
        .filter(|side| section.figures.iter().any(|row| row.ratio(side).is_some()))
        .collect();
    out.push_str("<div class=\"wide\"><table><thead><tr><th>");
    for side in &section.sides {
        let class = chart::class(side, &section.sides);
        let _ = write!(out, "<th class=\"n\"><i class=\"dot {class}\"></i>{}", escape(side));
    }
    for other in &others {
        let _ = write!(out, "<th class=\"n\">gateway/{}", escape(other));
    }
    out.push_str("</tr></thead><tbody>");
    for row in &section.figures {
        let _ = write!(
            out,
            "<tr{}><td>{}",
            if row.compared { "" } else { " class=\"aside\"" },
            escape(&row.name)
        );
        for side in &section.sides {
            let cell = row.cell(side).and_then(|cell| cell.spread).map(spread).unwrap_or_default();
            let _ = write!(out, "<td class=\"n\">{}", below(&cell));
        }
        for other in &others {
            let cell = row.ratio(other).copied().map(ratio).unwrap_or_default();
            let _ = write!(out, "<td class=\"n\">{}", below(&cell));
        }
    }
    out.push_str("</tbody></table></div>");
}

/// A median with its range, which goes below it where there is little room.
fn below(cell: &str) -> String {
    match cell.split_once(' ') {
        Some((median, range)) => format!("{median} <span class=\"range\">{range}</span>"),
        None => cell.to_owned(),
    }
}

fn charts(section: &Section, out: &mut String) {
    out.push_str("<div class=\"charts\">");
    for name in names(section.latencies.iter().map(|latency| &latency.name)) {
        let all: Vec<&Latency> = section.latencies.iter().filter(|latency| latency.name == name).collect();
        let svg = chart::latencies(&all, &section.sides);
        let _ =
            write!(out, "<figure><figcaption>{}: how long, and how often</figcaption>{svg}", escape(name));
        percentiles(&all, section, out);
        out.push_str("</figure>");
    }
    for name in names(section.throughput.iter().map(|one| &one.name)) {
        let all: Vec<&Throughput> = section.throughput.iter().filter(|one| one.name == name).collect();
        let svg = chart::throughput(&all, &section.sides);
        let _ = write!(
            out,
            "<figure><figcaption>{} a second, over time; a line for each round</figcaption>{svg}</figure>",
            escape(name)
        );
    }
    out.push_str("</div>");
}

fn percentiles(all: &[&Latency], section: &Section, out: &mut String) {
    out.push_str("<div class=\"wide\"><table class=\"small\"><thead><tr><th>ms");
    let heads = all.first().map(|latency| &latency.percentiles[..]).unwrap_or_default();
    for (percent, _) in heads {
        let head = if *percent < 100.0 { format!("p{percent}") } else { "max".to_owned() };
        let _ = write!(out, "<th class=\"n\">{head}");
    }
    out.push_str("</tr></thead><tbody>");
    for latency in all {
        let class = chart::class(&latency.side, &section.sides);
        let _ = write!(out, "<tr><td><i class=\"dot {class}\"></i>{}", escape(&latency.side));
        for (_, ms) in &latency.percentiles {
            let _ = write!(out, "<td class=\"n\">{}", number(*ms));
        }
    }
    out.push_str("</tbody></table></div>");
}

/// Each once, in the order in which they came.
fn names<'a>(all: impl Iterator<Item = &'a String>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    all.for_each(|name| {
        if !names.contains(&&name[..]) {
            names.push(name);
        }
    });
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_no_network_and_runs_nothing() {
        let mut section = Section { title: "fanout: <script>alert(1)</script>".into(), ..Section::default() };
        section.command = "loadtest fanout --channel \"<b>\"".into();
        section.warn("steal_time", "<i>");
        let page = page(&Report::new(vec![section.clone(), section]));
        for forbidden in ["<script", "src=", "http://", "https://", "<i>", "<b>\"", "url(", "@import"] {
            assert!(!page.contains(forbidden), "{forbidden} in {page}");
        }
        assert!(page.contains("1 warning") && page.contains("&lt;script&gt;"), "{page}");
    }
}
