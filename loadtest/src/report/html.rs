//! A report as one page for people: no script, no network, nothing but this file. Light and dark as
//! the reader likes it, wide or narrow. Everything that a report says is escaped.

use std::fmt::Write as _;

use super::data::{Latency, Report, Section, Throughput, Warning};
use super::number::{number, ratio, spread};

const STYLE: &str = include_str!("page.css");

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

fn summary(report: &Report, out: &mut String) {
    out.push_str(
        "<section><h2>In short</h2><div class=\"wide\"><table><thead><tr><th><th class=\"n\">ours\
         <th class=\"n\">floor<th class=\"n\">ratio<th class=\"n\">spread</tr></thead><tbody>",
    );
    for (index, section) in report.scenarios.iter().enumerate() {
        let link = format!("<a href=\"#s{index}\">{}</a>", escape(&section.title));
        let _ = write!(out, "<tr class=\"first\"><td colspan=\"5\">{link} {}", marks(section));
        for row in section.figures.iter().filter(|row| row.compared) {
            let _ = write!(out, "<tr><td>{}", escape(&row.name));
            for cell in section.brief(row) {
                let _ = write!(out, "<td class=\"n\">{cell}");
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
        let _ = write!(out, "<th class=\"n\"><i class=\"dot {}\"></i>{}", class(side), escape(side));
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

/// Pictures, made of bars, so that a page needs no script and no network.
fn charts(section: &Section, out: &mut String) {
    out.push_str("<div class=\"charts\">");
    for name in names(section.latencies.iter().map(|latency| &latency.name)) {
        let all: Vec<&Latency> = section.latencies.iter().filter(|latency| latency.name == name).collect();
        latencies(name, &all, out);
    }
    for name in names(section.throughput.iter().map(|one| &one.name)) {
        let all: Vec<&Throughput> = section.throughput.iter().filter(|one| one.name == name).collect();
        throughput(name, &all, out);
    }
    out.push_str("</div>");
}

/// How long, and how often: a bar for each quarter of a doubling, and the percentiles.
fn latencies(name: &str, all: &[&Latency], out: &mut String) {
    let column = |(_, to, _): &(u64, u64, u64)| ((*to.max(&1) as f64).log2() * 4.0) as u32;
    let columns = all.iter().flat_map(|latency| latency.buckets.iter().map(column));
    let Some((low, high)) = columns.clone().min().zip(columns.max()) else { return };
    let share = |latency: &Latency, at: u32| {
        let counts = latency.buckets.iter().filter(|bucket| column(bucket) == at).map(|(.., count)| count);
        counts.sum::<u64>() as f64 / latency.count as f64
    };
    let bars = |latency: &&Latency| (low..=high).map(|at| share(latency, at)).collect();
    let bars: Vec<Vec<f64>> = all.iter().map(bars).collect();
    let [from, to] = [low, high + 1].map(|column| number((f64::from(column) / 4.0).exp2() / 1000.0));
    let _ = write!(out, "<figure><figcaption>{}: {from} to {to} ms, logarithmic</figcaption>", escape(name));
    let top = bars.iter().flatten().copied().fold(0.0, f64::max);
    all.iter().zip(&bars).for_each(|(latency, bars)| strip(&latency.side, &latency.side, bars, top, out));
    percentiles(all, out);
    out.push_str("</figure>");
}

/// How often a second, over time: a strip for each round, of a hundred bars at most.
fn throughput(name: &str, all: &[&Throughput], out: &mut String) {
    let slices = all.iter().map(|one| one.counts.len()).max().unwrap_or(0);
    let together = slices.div_ceil(100).max(1);
    let rates = |one: &&Throughput| -> Vec<f64> {
        let whole = one.counts.chunks_exact(together);
        let seconds = (one.slice_ms * together as u64) as f64 / 1000.0;
        whole.map(|counts| counts.iter().sum::<u64>() as f64 / seconds).collect()
    };
    let rates: Vec<Vec<f64>> = all.iter().map(rates).collect();
    let top = rates.iter().flatten().copied().fold(0.0, f64::max);
    let (name, most) = (escape(name), number(top));
    let _ = write!(out, "<figure><figcaption>{name} a second, over time, up to {most}</figcaption>");
    for (one, rates) in all.iter().zip(&rates) {
        strip(&one.side, &format!("{}, round {}", one.side, one.round), rates, top, out);
    }
    out.push_str("</figure>");
}

/// Bars as high as their share of the highest.
fn strip(side: &str, title: &str, bars: &[f64], top: f64, out: &mut String) {
    let _ = write!(out, "<div class=\"strip {}\" title=\"{}\">", class(side), escape(title));
    for bar in bars {
        let _ = write!(out, "<i style=\"height:{:.0}%\"></i>", bar * 100.0 / top.max(f64::MIN_POSITIVE));
    }
    out.push_str("</div>");
}

fn percentiles(all: &[&Latency], out: &mut String) {
    out.push_str("<div class=\"wide\"><table class=\"small\"><thead><tr><th>ms");
    let heads = all.first().map(|latency| &latency.percentiles[..]).unwrap_or_default();
    for (percent, _) in heads {
        let head = if *percent < 100.0 { format!("p{percent}") } else { "max".to_owned() };
        let _ = write!(out, "<th class=\"n\">{head}");
    }
    out.push_str("</tr></thead><tbody>");
    for Latency { side, percentiles, .. } in all {
        let _ = write!(out, "<tr><td><i class=\"dot {}\"></i>{}", class(side), escape(side));
        for (_, ms) in percentiles {
            let _ = write!(out, "<td class=\"n\">{}", number(*ms));
        }
    }
    out.push_str("</tbody></table></div>");
}

/// The class that colours a side.
fn class(side: &str) -> &str {
    if matches!(side, "gateway" | "floor") { side } else { "peer" }
}

/// Text that stays text in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
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
    use std::time::{Duration, Instant};

    use super::*;
    use crate::stats::{Histogram, Timeline};

    #[test]
    fn pictures_show_every_side_and_escape_its_name() {
        let mut histogram = Histogram::new();
        (1..1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let all = ["gateway", "<b>"].map(|side| Latency::new("delivery", side, &histogram));
        let mut picture = String::new();
        latencies("delivery", &[&all[0], &all[1]], &mut picture);
        assert!(picture.contains("strip gateway") && picture.contains("strip peer"), "{picture}");
        assert!(picture.contains("height:100%") && picture.contains("&lt;b&gt;"), "{picture}");
        assert!(!["<b>", "NaN", "inf"].iter().any(|bad| picture.contains(bad)), "{picture}");

        let began = Instant::now();
        let mut timeline = Timeline::since(began);
        (0..3000).for_each(|ms| timeline.count(began + Duration::from_millis(ms), 7));
        let curve = Throughput::new("deliveries", "gateway", 1, &timeline);
        picture.clear();
        throughput("deliveries", &[&curve], &mut picture);
        assert!(picture.contains("round 1") && picture.contains("up to 7,000<"), "{picture}");
        assert_eq!(picture.matches("height:100%").count(), 30, "{picture}");
    }

    #[test]
    fn nothing_measured_is_no_picture() {
        let mut picture = String::new();
        latencies("delivery", &[&Latency::new("delivery", "gateway", &Histogram::new())], &mut picture);
        assert_eq!(picture, "");
    }

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
