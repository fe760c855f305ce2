//! Human-readable numbers.

/// At least four significant digits; integers in full, thousands separated by commas.
pub fn rounded(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        return value.to_string();
    }
    if value == value.trunc() && size < 1e15 {
        return grouped(value as i64);
    }
    if !(1e-3..1e15).contains(&size) {
        let text = format!("{value:.3e}");
        let (digits, power) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e{power}", trim_zeros(digits));
    }
    if size >= 1e4 {
        return grouped(value.round() as i64);
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    trim_zeros(&format!("{value:.decimals$}")).into()
}

/// An integer with thousands separated by commas.
pub fn grouped(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let mut text = String::from(if value < 0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes with a decimal unit, such as `1.5 MB`.
pub fn bytes(size: u64) -> String {
    let size = size as f64;
    match size {
        _ if size >= 1e9 => format!("{:.2} GB", size / 1e9),
        _ if size >= 1e6 => format!("{:.1} MB", size / 1e6),
        _ if size >= 1e3 => format!("{:.1} kB", size / 1e3),
        _ => format!("{size} B"),
    }
}

/// A duration, such as `3 min 20 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    let (hours, minutes) = (whole / 3600, whole / 60 % 60);
    match whole {
        0 => format!("{seconds:.1} s"),
        1..60 => format!("{whole} s"),
        60..3600 => format!("{minutes} min {} s", whole % 60),
        _ => format!("{hours} h {minutes} min"),
    }
}

fn trim_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_digits_are_enough() {
        let cases = [
            (0.0, "0"),
            (6.931_47, "6.931"),
            (37.128_7, "37.13"),
            (99.999_9, "100"),
            (0.5, "0.5"),
            (0.000_123_46, "1.235e-4"),
            (-0.012_5, "-0.0125"),
            (1212.0, "1,212"),
            (1230.4, "1230"),
            (27_519_354.0, "27,519,354"),
            (12_345.67, "12,346"),
            (-1234.0, "-1,234"),
            (2e-5, "2e-5"),
        ];
        for (value, text) in cases {
            assert_eq!(rounded(value), text);
        }
        assert_eq!(rounded(f64::NAN), "NaN");
    }

    #[test]
    fn sizes_and_times() {
        assert_eq!(
            [bytes(12), bytes(1000), bytes(2_345_678), bytes(3_000_000_000)],
            ["12 B", "1.0 kB", "2.3 MB", "3.00 GB"]
        );
        assert_eq!([duration(0.31), duration(59.2)], ["0.3 s", "59 s"]);
        assert_eq!([duration(192.0), duration(7384.0)], ["3 min 12 s", "2 h 3 min"]);
    }

    #[test]
    fn sizes_are_in_powers_of_ten() {
        assert_eq!([bytes(999), bytes(999_000), bytes(1_000_000)], ["999 B", "999.0 kB", "1.0 MB"]);
        assert_eq!(
            [duration(3599.0), duration(3600.0), duration(60.0)],
            ["59 min 59 s", "1 h 0 min", "1 min 0 s"]
        );
    }
}
