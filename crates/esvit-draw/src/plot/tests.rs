use super::*;

fn plot(shapes: Vec<(&str, Shape)>) -> Plot {
    let shapes = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
    Plot { x: "epoch".into(), y: "k-NN top-1 (%)".into(), scale: Scale::FromZero, shapes }
}

fn point(x: f64, y: f64, spread: f64) -> Point {
    Point { x, y, spread }
}

/// All values of an attribute.
fn numbers(svg: &str, element: &str, attribute: &str) -> Vec<f64> {
    let elements = svg.lines().filter(|line| line.starts_with(&format!("<{element} ")));
    let value = |line: &str| {
        let (_, rest) = line.split_once(&format!(" {attribute}=\"")).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    };
    elements.map(value).collect()
}

#[test]
fn larger_values_stand_higher_and_later_ones_to_the_right() {
    let line = Shape::Line(vec![point(1.0, 10.0, 0.0), point(2.0, 30.0, 0.0)]);
    let svg = plot(vec![("both", line)]).draw().unwrap().svg();
    let (x, y) = (numbers(&svg, "circle", "cx"), numbers(&svg, "circle", "cy"));
    assert!(x.len() == 2 && x[0] < x[1] && y[0] > y[1], "{x:?} {y:?}");
    assert!(svg.contains(">both<") && svg.contains(">epoch<") && svg.contains(">k-NN top-1 (%)<"));
    assert!(!svg.contains("<polygon") && !svg.contains("NaN"), "{svg}");
}

#[test]
fn the_spread_is_a_band_around_a_line_and_a_bar_at_a_mark() {
    let line = Shape::Line(vec![point(0.0, 10.0, 2.0), point(1.0, 20.0, 2.0)]);
    let svg = plot(vec![("a", line)]).draw().unwrap().svg();
    let (_, corners) = svg.split_once("<polygon points=\"").unwrap();
    let corners: Vec<Vec<f64>> = corners
        .split('"')
        .next()
        .unwrap()
        .split(' ')
        .map(|corner| corner.split(',').map(|number| number.parse().unwrap()).collect())
        .collect();
    // Above the line from left to right, and below it back.
    assert_eq!(corners.len(), 4);
    assert!(corners[0][0] < corners[1][0] && corners[1][0] == corners[2][0], "{corners:?}");
    assert!(corners[0][1] < corners[3][1] && corners[1][1] < corners[2][1], "{corners:?}");
    let middle = (corners[0][1] + corners[3][1]) / 2.0;
    assert!((middle - numbers(&svg, "circle", "cy")[0]).abs() < 0.02, "{corners:?}");
    let of_mark = |spread| {
        let shapes = vec![
            ("a", Shape::Mark(point(1.0, 10.0, spread))),
            ("b", Shape::Mark(point(2.0, 20.0, 0.0))),
        ];
        let svg = plot(shapes).draw().unwrap().svg();
        svg.matches("stroke-width=\"1.5\"").count()
    };
    assert_eq!([of_mark(0.0), of_mark(3.0)], [0, 1]);
}

#[test]
fn everything_is_in_the_legend_and_has_its_color() {
    let names = ["one", "two", "three"].map(|name| format!("{name} {}", "x".repeat(40)));
    let shapes = vec![
        (&*names[0], Shape::Mark(point(1.0, 1.0, 0.0))),
        ("raw pixels", Shape::Level(0.5)),
        (&*names[1], Shape::Mark(point(2.0, 2.0, 0.0))),
        (&*names[2], Shape::Mark(point(3.0, 3.0, 0.0))),
    ];
    let plot = plot(shapes);
    let expected = [Style::of_shape(0), Style::of_level(0), Style::of_shape(1), Style::of_shape(2)];
    assert_eq!(plot.styles(), expected);
    let lines: Vec<f64> = plot.legend().iter().map(|entry| entry.line).collect();
    assert!(lines.is_sorted() && lines[3] > 0.0, "{lines:?}");
    let svg = plot.draw().unwrap().svg();
    assert!(names.iter().all(|name| svg.contains(&format!(">{name}<"))), "{svg}");
    // One across the plot and one in the legend.
    assert_eq!(svg.matches("stroke-dasharray").count(), 2);
}

/// With one check there is no band, and with two seeds there is a spread.
#[test]
fn a_line_of_one_point_is_a_mark_with_a_bar() {
    let line = |y, spread| Shape::Line(vec![point(1.0, y, spread)]);
    let svg = plot(vec![("a", line(10.0, 2.0)), ("b", line(20.0, 0.0))]).draw().unwrap().svg();
    assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 1, "{svg}");
    assert!(!svg.contains("<polygon") && !svg.contains("<polyline"), "{svg}");
    // Each in the plot and in the legend, equally large.
    assert_eq!(numbers(&svg, "circle", "r"), [5.0; 4]);
}

#[test]
fn equal_marks_are_all_seen() {
    let marks = ["a", "b", "c"].map(|name| (name, Shape::Mark(point(7.0, 3.0, 1.0))));
    let svg = plot(marks.into()).draw().unwrap().svg();
    let mut left = numbers(&svg, "circle", "cx")[..3].to_vec();
    left.sort_by(f64::total_cmp);
    assert!(left.windows(2).all(|pair| pair[1] - pair[0] > 10.0), "{left:?}");
    // Bars go with their marks, and thin lines lead to the place of two of them.
    let bars = svg.lines().filter(|line| line.contains("stroke-width=\"1.5\""));
    let bars: Vec<String> = bars.map(str::to_owned).collect();
    assert!(left.iter().all(|x| bars.iter().any(|bar| bar.contains(&format!("x1=\"{x:.2}\"")))));
    assert_eq!(svg.matches("stroke-width=\"0.75\" stroke-linecap").count(), 2, "{svg}");
}

/// Nine lines, two of the same color, and two levels of a gray.
#[test]
fn everything_looks_different() {
    let names: Vec<String> = (0..9).map(|number| format!("line {number}")).collect();
    let line = |number: usize| {
        let y = number as f64;
        Shape::Line(vec![point(0.0, y, 0.0), point(1.0, y, 0.0)])
    };
    let mut shapes: Vec<(&str, Shape)> =
        names.iter().enumerate().map(|(number, name)| (&**name, line(number))).collect();
    shapes.push(("raw pixels", Shape::Level(10.0)));
    shapes.push(("untrained", Shape::Level(11.0)));
    let svg = plot(shapes).draw().unwrap().svg();
    let strokes = svg.lines().filter_map(|line| line.strip_prefix("<polyline points="));
    let look = |line: &str| line.split_once(" fill").unwrap().1.to_owned();
    let mut looks: Vec<String> = strokes.map(look).collect();
    assert_eq!(looks.len(), 2 * (9 + 2), "{svg}");
    looks.sort_unstable();
    looks.dedup();
    assert_eq!(looks.len(), 9 + 2, "{looks:?}");
    // The ninth has squares, in place of discs.
    assert_eq!(svg.matches("<polygon").count(), 2, "{svg}");
}

#[test]
fn nothing_is_no_plot() {
    assert_eq!(plot(vec![]).draw().map(|drawing| drawing.svg()), None);
    assert!(plot(vec![("level", Shape::Level(1.0))]).draw().is_none());
    assert!(plot(vec![("line", Shape::Line(vec![]))]).draw().is_none());
    let one = plot(vec![("a < b", Shape::Mark(point(5.0, 5.0, 0.0)))]).draw().unwrap().svg();
    assert!(one.contains("a &lt; b") && !one.contains("NaN"), "{one}");
}
