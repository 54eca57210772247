//! Figures of all rounds, and the table that people read in a terminal.

use std::fmt;

use super::data::{Cell, Ratio, Row};
use super::number::number;
use super::text;
use crate::stats::Spread;

/// One server of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The bare server.
    Floor,
    /// Campanile.
    Gateway,
}

impl Side {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Gateway => "gateway",
        }
    }
}

/// One figure of one round. Its name includes the unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What was measured.
    pub name: &'static str,
    /// How much.
    pub value: f64,
    /// Whether the ratio of gateway to floor is meaningful.
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

/// All rounds so far.
#[derive(Debug, Clone)]
pub struct Table {
    sides: Vec<Side>,
    rows: Vec<Values>,
}

#[derive(Debug, Clone)]
struct Values {
    name: &'static str,
    compared: bool,
    /// By side, by round.
    rounds: Vec<Vec<f64>>,
}

impl Table {
    /// No figures yet.
    pub fn new(sides: &[Side]) -> Self {
        Self { sides: sides.to_vec(), rows: Vec::new() }
    }

    /// Whose figures.
    pub fn sides(&self) -> &[Side] {
        &self.sides
    }

    /// Adds a round of one side.
    pub fn add(&mut self, side: Side, figures: &[Figure]) {
        let Some(column) = self.sides.iter().position(|known| *known == side) else { return };
        for Figure { name, value, compared } in figures {
            let row = match self.rows.iter().position(|row| row.name == *name) {
                Some(row) => row,
                None => {
                    let rounds = vec![Vec::new(); self.sides.len()];
                    self.rows.push(Values { name, compared: *compared, rounds });
                    self.rows.len() - 1
                }
            };
            self.rows[row].rounds[column].push(*value);
        }
    }

    /// As a report has them.
    pub fn rows(&self) -> Vec<Row> {
        let cell = |(side, rounds): (&Side, &Vec<f64>)| Cell {
            side: side.name().to_owned(),
            rounds: rounds.clone(),
            spread: Spread::of(rounds),
        };
        let row = |row: &Values| Row {
            name: row.name.to_owned(),
            compared: row.compared,
            cells: self.sides.iter().zip(&row.rounds).map(cell).collect(),
            ratios: self.ratios(row),
        };
        self.rows.iter().map(row).collect()
    }

    /// The gateway over each other, round by round, because what slows the machine for a while slows
    /// both.
    fn ratios(&self, row: &Values) -> Vec<Ratio> {
        let gateway = self.sides.iter().position(|side| *side == Side::Gateway);
        let Some(gateway) = gateway.filter(|_| row.compared) else { return Vec::new() };
        let ratio = |(index, over): (usize, &Side)| {
            let pairs = row.rounds[index].iter().zip(&row.rounds[gateway]);
            let ratios = pairs.map(|(other, gateway)| gateway / other).filter(|ratio| ratio.is_finite());
            let spread = Spread::of(&ratios.collect::<Vec<_>>()).filter(|_| index != gateway)?;
            Some(Ratio { over: over.name().to_owned(), spread })
        };
        self.sides.iter().enumerate().filter_map(ratio).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides: Vec<&str> = self.sides.iter().map(|side| side.name()).collect();
        f.write_str(&text::figures(&sides, &self.rows()))
    }
}

/// The figures of one round.
pub fn line(figures: &[Figure]) -> String {
    let texts: Vec<String> = figures.iter().map(|f| format!("{} {}", f.name, number(f.value))).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
