//! Figures, and the servers that they are of.

use super::number::number;

/// One server of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Floor,
    Gateway,
}

impl Side {
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
    pub name: &'static str,
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

pub fn line(figures: &[Figure]) -> String {
    let texts: Vec<String> = figures.iter().map(|f| format!("{} {}", f.name, number(f.value))).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Section, text};

    #[test]
    fn a_row_has_medians_and_the_ratio_of_each_round() {
        let mut section = Section::new("fanout: 3", &[Side::Floor, Side::Gateway]);
        for (floor, gateway) in [(4.0, 4.4), (5.0, 5.0), (4.0, 5.0)] {
            section.add(Side::Floor, &[figure("µs", floor), aside("%", 1.0)]);
            section.add(Side::Gateway, &[figure("µs", gateway), aside("%", 1.0)]);
        }
        section.conclude();
        let sides: Vec<&str> = section.sides.iter().map(String::as_str).collect();
        let text = text::figures(&sides, &section.figures);
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
