//! Pictures as SVG, made here so that a page needs no script and no network: a latency histogram over
//! a logarithmic axis, and throughput over time. Colours are classes that the page defines, for light
//! and dark.

use std::fmt::Write as _;

use super::data::{Latency, Throughput};
use super::markup::escape;
use super::number::number;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

/// The latencies of one name, a curve for each side. The area is all of them; the lines are the
/// median and the 99th percentile.
pub fn latencies(all: &[&Latency], sides: &[String]) -> String {
    let ends = all.iter().flat_map(|one| one.buckets.iter().flat_map(|(from, to, _)| [*from, *to]));
    let Some((low, high)) = extremes(ends.map(log)) else { return String::new() };
    // A decade at least, so that one bucket is no wall.
    let (low, high) = (low.floor(), (high + 0.05).max(low.floor() + 1.0));
    let x = |at: f64| LEFT + (at - low) / (high - low) * (WIDTH - LEFT - RIGHT);
    let densities = all.iter().flat_map(|one| one.buckets.iter().map(|bucket| density(one, bucket)));
    let top = densities.fold(f64::MIN_POSITIVE, f64::max);
    let base = HEIGHT - BOTTOM;
    let y = |density: f64| base - density / top * (base - TOP);

    let mut out = frame("latency histogram");
    for decade in (low as i32)..=(high.floor() as i32) {
        for step in 1..10 {
            let micros = f64::from(step) * 10_f64.powi(decade);
            if micros.log10() <= high {
                vertical(&mut out, x(micros.log10()), &if step == 1 { time(micros) } else { String::new() });
            }
        }
    }
    for one in all {
        let class = class(&one.side, sides);
        let mut path = format!("M{:.1} {base}", x(low));
        for bucket @ (from, to, _) in &one.buckets {
            let (from, to, at) = (x(log(*from)), x(log(*to)), y(density(one, bucket)));
            let _ = write!(path, "H{from:.1}V{at:.1}H{to:.1}V{base}");
        }
        let name = escape(&one.side);
        let _ = write!(out, "<path class=\"area {class}\" d=\"{path}Z\"><title>{name}</title></path>");
        for (percent, ms) in one.percentiles.iter().filter(|(percent, _)| [50.0, 99.0].contains(percent)) {
            let (at, ms) = (x((ms * 1000.0).max(1.0).log10()), number(*ms));
            let _ = write!(
                out,
                "<line class=\"line {class}\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{base}\">\
                 <title>{name}: p{percent} {ms} ms</title></line>"
            );
        }
    }
    out + "</svg>"
}

fn log(micros: u64) -> f64 {
    (micros.max(1) as f64).log10()
}

/// Share of a bucket per width on the logarithmic axis, so that buckets of any width compare.
fn density(latency: &Latency, (from, to, count): &(u64, u64, u64)) -> f64 {
    *count as f64 / latency.count.max(1) as f64 / (log(*to) - log(*from)).max(0.01)
}

/// Throughput of one name over time, a curve for each round of each side.
pub fn throughput(all: &[&Throughput], sides: &[String]) -> String {
    // Slices of a tenth of a second jump about; as many as make a hundred points are taken together.
    let slices = all.iter().map(|one| one.counts.len()).max().unwrap_or(0);
    let together = slices.div_ceil(100).max(1);
    let rates = |one: &Throughput| -> Vec<(f64, f64)> {
        let seconds = one.slice_ms as f64 / 1000.0;
        let whole = one.counts.chunks(together).filter(|chunk| chunk.len() == together);
        let rate = |(index, chunk): (usize, &[u64])| {
            let width = together as f64 * seconds;
            ((index as f64 + 0.5) * width, chunk.iter().sum::<u64>() as f64 / width)
        };
        whole.enumerate().map(rate).collect()
    };
    let curves: Vec<(&Throughput, Vec<(f64, f64)>)> = all.iter().map(|one| (*one, rates(one))).collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let (Some((_, last)), Some((_, top))) =
        (extremes(points().map(|point| point.0)), extremes(points().map(|point| point.1)))
    else {
        return String::new();
    };
    let top = (top * 1.05).max(1.0);
    let x = |seconds: f64| LEFT + seconds / last.max(f64::MIN_POSITIVE) * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| HEIGHT - BOTTOM - rate / top * (HEIGHT - TOP - BOTTOM);
    let mut out = frame("throughput over time");
    for seconds in ticks(last) {
        vertical(&mut out, x(seconds), &format!("{seconds} s"));
    }
    for rate in ticks(top) {
        horizontal(&mut out, y(rate), &short(rate));
    }
    for (one, points) in &curves {
        let points: Vec<String> =
            points.iter().map(|(at, rate)| format!("{:.1},{:.1}", x(*at), y(*rate))).collect();
        let class = class(&one.side, sides);
        let _ = write!(
            out,
            "<polyline class=\"line {class}\" points=\"{}\"><title>{}, round {}</title></polyline>",
            points.join(" "),
            escape(&one.side),
            one.round
        );
    }
    out + "</svg>"
}

/// The class that colours a side.
pub fn class(side: &str, sides: &[String]) -> &'static str {
    match (side, sides.iter().position(|known| known == side)) {
        ("gateway", _) => "gateway",
        ("floor", _) => "floor",
        _ => "peer",
    }
}

fn frame(label: &str) -> String {
    format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{label}\">")
}

fn vertical(out: &mut String, x: f64, label: &str) {
    let (bottom, text) = (HEIGHT - BOTTOM, HEIGHT - BOTTOM + 16.0);
    let _ = write!(out, "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>");
    if !label.is_empty() {
        let _ = write!(out, "<text x=\"{x:.1}\" y=\"{text}\" text-anchor=\"middle\">{label}</text>");
    }
}

fn horizontal(out: &mut String, y: f64, label: &str) {
    let (right, text_x, text_y) = (WIDTH - RIGHT, LEFT - 6.0, y + 4.0);
    let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>");
    let _ = write!(out, "<text x=\"{text_x}\" y=\"{text_y:.1}\" text-anchor=\"end\">{label}</text>");
}

fn extremes(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |known, value| match known {
        None => Some((value, value)),
        Some((low, high)) => Some((low.min(value), high.max(value))),
    })
}

/// Round numbers from zero to `top`, half a dozen at most.
fn ticks(top: f64) -> Vec<f64> {
    if top <= 0.0 || !top.is_finite() {
        return vec![0.0];
    }
    let magnitude = 10_f64.powf((top / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * magnitude);
    let step = steps.into_iter().find(|step| top / step <= 6.0).unwrap_or(steps[3]);
    let round = |tick: f64| (tick / magnitude).round() * magnitude;
    (0..).map(|index| round(f64::from(index) * step)).take_while(|tick| *tick <= top).collect()
}

fn time(micros: f64) -> String {
    match micros {
        short if short < 1000.0 => format!("{short} µs"),
        medium if medium < 1e6 => format!("{} ms", medium / 1000.0),
        long => format!("{} s", long / 1e6),
    }
}

fn short(value: f64) -> String {
    match value {
        millions if millions >= 1e6 => format!("{} M", millions / 1e6),
        thousands if thousands >= 1e4 => format!("{} k", thousands / 1e3),
        _ => format!("{value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Histogram, Timeline};
    use std::time::{Duration, Instant};

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(ticks(1_050_000.0).len(), 6);
        assert_eq!(ticks(0.0), [0.0]);
    }

    #[test]
    fn pictures_show_every_side_and_escape_its_name() {
        let sides = ["gateway".to_owned(), "<b>".to_owned()];
        let mut histogram = Histogram::new();
        (1..1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let all: Vec<Latency> = sides.iter().map(|side| Latency::new("delivery", side, &histogram)).collect();
        let svg = latencies(&all.iter().collect::<Vec<_>>(), &sides);
        assert!(svg.contains("line gateway") && svg.contains("line peer"), "{svg}");
        assert!(!svg.contains("<b>") && !svg.contains("NaN") && !svg.contains("inf"), "{svg}");

        let began = Instant::now();
        let mut timeline = Timeline::since(began);
        (0..3000).for_each(|ms| timeline.count(began + Duration::from_millis(ms), 7));
        let curve = Throughput::new("deliveries", "gateway", 1, &timeline);
        let svg = throughput(&[&curve], &sides);
        assert!(svg.contains("polyline") && svg.contains("round 1") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn nothing_measured_is_no_picture() {
        let none = Latency::new("delivery", "gateway", &Histogram::new());
        assert_eq!((latencies(&[&none], &[]), throughput(&[], &[])), (String::new(), String::new()));
    }
}
