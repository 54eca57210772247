//! Figures of all rounds, and the table that people read.

use std::fmt;

use serde_json::{Value, json};

use super::Side;
use crate::stats::Spread;

/// One figure of one round. Its name says its unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Whether gateway over floor says anything.
    pub compared: bool,
}

/// A figure worth comparing.
pub fn figure(name: &'static str, value: f64) -> Figure {
    Figure { name, value, compared: true }
}

/// A figure that explains the others.
pub fn aside(name: &'static str, value: f64) -> Figure {
    Figure { name, value, compared: false }
}

/// All rounds.
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    compared: bool,
    /// By side, by round.
    values: Vec<Vec<f64>>,
}

const COLUMN: usize = 34;

impl Table {
    /// No figures yet.
    pub fn new(sides: &[Side]) -> Self {
        Self { sides: sides.to_vec(), rows: Vec::new() }
    }

    /// Adds a round of one side.
    pub fn add(&mut self, side: Side, figures: &[Figure]) {
        let Some(column) = self.sides.iter().position(|known| *known == side) else { return };
        for Figure { name, value, compared } in figures {
            let row = match self.rows.iter().position(|row| row.name == *name) {
                Some(row) => row,
                None => {
                    let values = vec![Vec::new(); self.sides.len()];
                    self.rows.push(Row { name, compared: *compared, values });
                    self.rows.len() - 1
                }
            };
            self.rows[row].values[column].push(*value);
        }
    }

    /// Every value of every round.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            let mut value = json!({ "name": row.name });
            for (side, values) in self.sides.iter().zip(&row.values) {
                value[side.name()] = json!(values);
            }
            if let Some(ratio) = row.ratio() {
                value["gateway_over_floor"] = json!(ratio.median);
            }
            value
        };
        self.rows.iter().map(row).collect()
    }
}

impl Row {
    /// Gateway over floor, round by round, because what slows the machine for a while slows both.
    fn ratio(&self) -> Option<Spread> {
        let [floor, gateway] = &self.values[..] else { return None };
        let ratios = floor.iter().zip(gateway).map(|(floor, gateway)| gateway / floor);
        let ratios: Vec<f64> = ratios.filter(|ratio| ratio.is_finite()).collect();
        Spread::of(&ratios).filter(|_| self.compared)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name_width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        let pair = self.sides.len() == 2;
        let mut line = |name: &str, cells: Vec<String>, last: String| {
            let cells: String = cells.iter().map(|cell| format!("  {cell:<COLUMN$}")).collect();
            let line = format!("{name:name_width$}{cells}  {last}");
            writeln!(f, "{}", line.trim_end())
        };
        let names = self.sides.iter().map(|side| side.name().to_owned()).collect();
        line("", names, if pair { "gateway/floor".into() } else { String::new() })?;
        for row in &self.rows {
            let cells = row.values.iter().map(|values| Spread::of(values).map(spread).unwrap_or_default());
            line(row.name, cells.collect(), row.ratio().map(ratio).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// The figures of one round.
pub fn line(figures: &[Figure]) -> String {
    let texts: Vec<String> = figures.iter().map(|f| format!("{} {}", f.name, number(f.value))).collect();
    texts.join("; ")
}

fn spread(Spread { median, low, high }: Spread) -> String {
    match low < high {
        true => format!("{} ({} to {})", number(median), number(low), number(high)),
        false => number(median),
    }
}

fn ratio(Spread { median, low, high }: Spread) -> String {
    match low < high {
        true => format!("{median:.3} ({low:.3} to {high:.3})"),
        false => format!("{median:.3}"),
    }
}

/// With three digits that matter, or all of them grouped.
fn number(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let (sign, digits) = digits.strip_prefix('-').map_or(("", &digits[..]), |digits| ("-", digits));
            let mut out = sign.to_owned();
            for (index, digit) in digits.char_indices() {
                if index > 0 && (digits.len() - index) % 3 == 0 {
                    out.push(',');
                }
                out.push(digit);
            }
            out
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_or_grouped() {
        let shown = [0.0, 4.123, 41.26, 999.4, 1000.0, 1_234_567.0, -12_345.0].map(number);
        assert_eq!(shown, ["0.00", "4.12", "41.3", "999", "1,000", "1,234,567", "-12,345"]);
    }

    #[test]
    fn a_row_has_medians_and_the_ratio_of_each_round() {
        let mut table = Table::new(&[Side::Floor, Side::Gateway]);
        for (floor, gateway) in [(4.0, 4.4), (5.0, 5.0), (4.0, 5.0)] {
            table.add(Side::Floor, &[figure("µs", floor), aside("%", 1.0)]);
            table.add(Side::Gateway, &[figure("µs", gateway), aside("%", 1.0)]);
        }
        let text = table.to_string();
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|row| row.split("  ").map(str::trim).filter(|s| !s.is_empty()).collect())
            .collect();
        assert_eq!(rows[0], ["floor", "gateway", "gateway/floor"]);
        let expected = ["µs", "4.00 (4.00 to 5.00)", "5.00 (4.40 to 5.00)", "1.100 (1.000 to 1.250)"];
        assert_eq!(rows[1], expected);
        assert_eq!(rows[2], ["%", "1.00", "1.00"]);
    }
}
