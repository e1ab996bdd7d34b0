//! Line charts as SVG, by hand: a report needs nothing but itself.

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Lines of the grid, about.
const STEPS: f64 = 5.0;
/// Told apart by most eyes, on light and dark.
const COLORS: [&str; 8] =
    ["#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#65a30d"];

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// What it is.
    pub name: String,
    /// Its points, by x.
    pub points: Vec<(f64, f64)>,
}

/// What stands below the chart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Seconds.
    Seconds,
    /// Percentiles, drawn in nines: 99 and 99.9 are as far apart as 90 and 99.
    Percentiles,
}

/// A chart of some lines; nothing if there is nothing to draw.
pub fn chart(title: &str, unit: &str, axis: Axis, lines: &[Line]) -> String {
    let lines: Vec<Line> = lines.iter().filter(|line| !line.points.is_empty()).cloned().collect();
    if lines.is_empty() {
        return String::new();
    }
    let x_of = |x: f64| if axis == Axis::Percentiles { nines(x) } else { x };
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| x_of(point.0)).fold(f64::MIN_POSITIVE, f64::max);
    let x_min = all().map(|point| x_of(point.0)).fold(x_max, f64::min);
    let y_step = step(all().map(|point| point.1).fold(0.0, f64::max));
    let y_max = (all().map(|point| point.1).fold(0.0, f64::max) / y_step).ceil().max(1.0) * y_step;
    let across = |x: f64| LEFT + (x - x_min) / (x_max - x_min).max(1e-9) * (WIDTH - LEFT - RIGHT);
    let down = |y: f64| HEIGHT - BOTTOM - y / y_max * (HEIGHT - BOTTOM - TOP);
    let mut out = format!(
        r#"<figure><figcaption>{}, {}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">"#,
        escape(title),
        escape(unit)
    );
    let mut y = 0.0;
    while y <= y_max * 1.001 {
        let at = down(y);
        out.push_str(&format!(r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            short(y)
        ));
        y += y_step;
    }
    for (label, x) in marks(axis, x_min, x_max) {
        out.push_str(&format!(
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#,
            across(x),
            HEIGHT - BOTTOM + 16.0
        ));
    }
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        let mut path = String::new();
        for (x, y) in &line.points {
            path.push_str(&format!("{:.1},{:.1} ", across(x_of(*x)), down(*y)));
        }
        out.push_str(&format!(r#"<polyline points="{}" stroke="{color}"/>"#, path.trim_end()));
    }
    out.push_str("</svg><p>");
    for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
        out.push_str(&format!(
            r#"<span class="key"><i style="background:{color}"></i>{}</span>"#,
            escape(&line.name)
        ));
    }
    out.push_str("</p></figure>");
    out
}

fn nines(percentile: f64) -> f64 {
    -(1.0 - (percentile / 100.0).min(0.999_999)).log10()
}

fn marks(axis: Axis, min: f64, max: f64) -> Vec<(String, f64)> {
    match axis {
        Axis::Percentiles => [0.0, 50.0, 90.0, 99.0, 99.9, 99.99]
            .into_iter()
            .map(|percentile| (format!("{percentile} %"), nines(percentile)))
            .filter(|(_, x)| *x >= min - 1e-9 && *x <= max + 1e-9)
            .collect(),
        Axis::Seconds => {
            let step = step(max - min);
            let mut at = (min / step).ceil() * step;
            let mut marks = Vec::new();
            while at <= max + 1e-9 {
                marks.push((format!("{} s", short(at)), at));
                at += step;
            }
            marks
        }
    }
}

/// A distance of grid lines that reads well: 1, 2 or 5 and zeros.
fn step(range: f64) -> f64 {
    let rough = (range / STEPS).max(1e-9);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn short(number: f64) -> String {
    match number.abs() {
        n if n >= 1e6 => format!("{}M", trimmed(number / 1e6)),
        n if n >= 10_000.0 => format!("{}k", trimmed(number / 1e3)),
        _ => trimmed(number),
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Text as it stands in HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_lies_within_the_picture_and_grids_read_well() {
        let points = vec![(0.0, 0.0), (5.0, 37.0), (9.0, 12.5)];
        let svg = chart("a < b", "ms", Axis::Seconds, &[Line { name: "x".into(), points }]);
        let points = svg.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!((LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y), "{point}");
        }
        assert!(svg.contains("a &lt; b") && svg.contains(">10</text>") && svg.contains(">2 s</text>"));
        for (range, expected) in [(37.0, 10.0), (0.9, 0.2), (5.0, 1.0), (2_300.0, 500.0)] {
            assert!((step(range) - expected).abs() < 1e-9, "{range}: {}", step(range));
        }
        assert_eq!(chart("empty", "ms", Axis::Seconds, &[]), "");
    }

    #[test]
    fn nines_are_equally_far_apart() {
        let far = nines(99.0) - nines(90.0);
        assert!((nines(99.9) - nines(99.0) - far).abs() < 1e-9);
    }
}
