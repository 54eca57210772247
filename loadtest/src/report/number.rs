//! How figures are written: three digits that matter, or all of them grouped.

use crate::stats::Spread;

pub fn number(value: f64) -> String {
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

/// The median, and the lowest to the highest.
pub fn spread(Spread { median, low, high }: Spread) -> String {
    match low < high {
        true => format!("{} ({} to {})", number(median), number(low), number(high)),
        false => number(median),
    }
}

/// A ratio, and the lowest to the highest.
pub fn ratio(Spread { median, low, high }: Spread) -> String {
    match low < high {
        true => format!("{median:.3} ({low:.3} to {high:.3})"),
        false => format!("{median:.3}"),
    }
}

/// A share of one.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
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
    fn a_spread_of_one_value_is_that_value() {
        let one = Spread { median: 2.0, low: 2.0, high: 2.0 };
        let many = Spread { median: 2.0, low: 1.0, high: 2000.0 };
        assert_eq!((spread(one), spread(many)), ("2.00".into(), "2.00 (1.00 to 2,000)".into()));
        assert_eq!((ratio(one), percent(0.1234)), ("2.000".into(), "12.3 %".into()));
    }
}
