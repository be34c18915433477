//! A page with the figures and their plots: one file, nothing fetched.

use std::fmt::Write as _;

use super::{
    churn::Churned,
    deploy::Deployed,
    report::{Quantiles, Report, float},
    saturate::Search,
};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 240.0;
/// Around the plot, for its labels.
const MARGIN: f64 = 64.0;
/// Lines across a plot.
const TICKS: u32 = 4;
const COLOURS: [&str; 3] = ["#2563eb", "#d97706", "#b91c1c"];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:48rem;\
padding:0 1rem;color:#1f2937;background:#fff}h1{font-size:1.4rem}h2{font-size:1.05rem;\
margin:2rem 0 .3rem}table{border-collapse:collapse}td,th{padding:.15rem 1.2rem .15rem 0;\
text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}\
svg text{font-size:11px;fill:#6b7280}.bad{color:#b91c1c}";

/// A line in a plot.
struct Line {
    name: &'static str,
    points: Vec<(f64, f64)>,
}

/// A plot, from the least to the largest of its points.
struct Plot {
    title: &'static str,
    unit: &'static str,
    lines: Vec<Line>,
    /// What stands below the horizontal axis, and where.
    marks: Vec<(f64, String)>,
}

/// The page of a single run.
pub(super) fn of_run(scenario: &str, report: &Report) -> String {
    let mut page = begin(scenario);
    let mut rows = vec![
        ("clients".into(), report.connects.ready.to_string()),
        (
            "deliveries per second".into(),
            format!(
                "{:.0} of {:.0}",
                report.deliveries_per_second, report.expected_deliveries_per_second
            ),
        ),
        ("latency p50, p99, max".into(), times(&report.latency_us)),
        (
            "until the answer p50, p99, max".into(),
            times(&report.ack_us),
        ),
        (
            "lost, repeated, out of order".into(),
            format!(
                "{}, {}, {}",
                report.lost, report.repeated, report.out_of_order
            ),
        ),
        (
            "generator".into(),
            format!("{:.2} cores", report.generator_cores),
        ),
    ];
    for (signal, pauses) in &report.pauses_us {
        let figures = format!(
            "{:.0}, {:.0}, {:.0} ms, {} times",
            ms(pauses.p50),
            ms(pauses.p99),
            ms(pauses.max),
            pauses.count
        );
        rows.push((format!("pause by {signal}: p50, p99, max"), figures));
    }
    if report.must_stay_connected {
        rows.push(("disconnects".into(), report.disconnects.to_string()));
    }
    if let Some(deployed) = &report.deploy {
        rows.extend(of_deploy(deployed));
    }
    if let Some(server) = &report.server {
        rows.push(("server".into(), format!("{:.2} cores", server.cores)));
        if let Some(seconds) = server.seconds_per_million_deliveries {
            let figure = format!("{seconds:.2} s of processor time");
            rows.push(("for a million deliveries".into(), figure));
        }
        if let Some(micros) = server.microseconds_per_publication {
            let figure = format!("{micros:.0} µs of processor time");
            rows.push(("for a publication".into(), figure));
        }
    }
    if let Some(memory) = &report.memory {
        let bytes = memory.bytes_per_connection.unwrap_or(0);
        rows.push(("memory".into(), format!("{bytes} bytes per connection")));
    }
    table(&mut page, &rows);
    if report.latency_us.count > 0 {
        page.push_str(&curve(report).draw());
        let (throughput, latency) = over_time(report);
        page.push_str(&throughput.draw());
        page.push_str(&latency.draw());
    }
    end(page)
}

fn times(of: &Quantiles) -> String {
    let [p50, p99, max] = [of.p50, of.p99, of.max].map(ms);
    format!("{p50:.2}, {p99:.2}, {max:.2} ms")
}

fn of_deploy(deployed: &Deployed) -> Vec<(String, String)> {
    let mut rows = vec![
        (
            "updates".into(),
            format!("{}, {} failed", deployed.steps.len(), deployed.failures()),
        ),
        (
            "connections moved".into(),
            format!("{}, {} failed", deployed.moved, deployed.failed),
        ),
        (
            "moved per second of handing over".into(),
            format!("{:.0}", deployed.moved_per_second),
        ),
        ("update p50, p99, max".into(), times(&deployed.update_us)),
        (
            "pause of a connection p50, p99, max".into(),
            times(&deployed.pause_us),
        ),
        (
            "pause that clients saw p50, p99, max".into(),
            times(&deployed.seen_pause_us),
        ),
    ];
    for (role, before) in &deployed.before {
        let after = deployed.after.get(role).copied().unwrap_or_default();
        rows.push((
            format!("{role}: descriptors, before and after"),
            format!("{}, {}", before.descriptors, after.descriptors),
        ));
        let mib = |bytes: u64| float(bytes) / 1_048_576.0;
        rows.push((
            format!("{role}: PSS, before and after"),
            format!(
                "{:.1}, {:.1} MiB",
                mib(before.pss_bytes),
                mib(after.pss_bytes)
            ),
        ));
    }
    rows
}

/// The page of a search for the limit.
pub(super) fn of_search(search: &Search) -> String {
    let mut page = begin(&format!("saturate {}", search.scenario));
    page.push_str(
        "<table><tr><th>asked for</th><th>arrived</th><th>p50</th><th>p99</th><th></th></tr>",
    );
    let mut steps: Vec<_> = search.steps.iter().collect();
    steps.sort_by(|a, b| a.rate.total_cmp(&b.rate));
    for step in &steps {
        let failed = step.failed.unwrap_or_default();
        let row = format!(
            "<tr><td>{:.0}/s</td><td>{:.0}/s</td><td>{:.2} ms</td><td>{:.2} ms</td>\
             <td class=bad>{failed}</td></tr>",
            step.asked_deliveries_per_second,
            step.deliveries_per_second,
            ms(step.p50_us),
            ms(step.p99_us)
        );
        page.push_str(&row);
    }
    page.push_str("</table>");
    let line = |name, of: fn(&super::saturate::Step) -> u64| Line {
        name,
        points: steps
            .iter()
            .map(|step| (step.asked_deliveries_per_second, ms(of(step))))
            .collect(),
    };
    let (least, most) = steps
        .iter()
        .fold((f64::MAX, 0.0_f64), |(least, most), step| {
            let rate = step.asked_deliveries_per_second;
            (least.min(rate), most.max(rate))
        });
    let plot = Plot {
        title: "Latency by deliveries asked for per second",
        unit: "ms",
        lines: vec![
            line("p50", |step| step.p50_us),
            line("p99", |step| step.p99_us),
        ],
        marks: [least, most]
            .map(|rate| (rate, format!("{rate:.0}/s")))
            .into(),
    };
    if steps.len() > 1 {
        page.push_str(&plot.draw());
    }
    end(page)
}

/// The page of a run of `churn`.
pub(super) fn of_churn(churned: &Churned) -> String {
    let mut page = begin("churn");
    let ready = &churned.ready_us;
    let mut rows = vec![
        (
            "cycles per second".into(),
            format!("{:.0}", churned.cycles_per_second),
        ),
        ("failed".into(), churned.failed.to_string()),
        (
            "to a subscription, p50, p99, max".into(),
            format!(
                "{:.2}, {:.2}, {:.2} ms",
                ms(ready.p50),
                ms(ready.p99),
                ms(ready.max)
            ),
        ),
    ];
    if let Some(cores) = churned.server_cores {
        rows.push(("server".into(), format!("{cores:.2} cores")));
    }
    table(&mut page, &rows);
    end(page)
}

fn curve(report: &Report) -> Plot {
    // Each nine is as wide as the others.
    let nines = |share: f64| -(1.0 - share).log10();
    let mark = |percent: &str| {
        let share = percent.parse().unwrap_or(0.0) / 100.0;
        (nines(share), format!("{percent} %"))
    };
    Plot {
        title: "Latency by share of deliveries",
        unit: "ms",
        lines: vec![Line {
            name: "within",
            points: report
                .latency_curve
                .iter()
                .map(|(share, micros)| (nines(*share), ms(*micros)))
                .collect(),
        }],
        marks: ["0", "90", "99", "99.9", "99.99", "99.999"]
            .map(mark)
            .into(),
    }
}

fn over_time(report: &Report) -> (Plot, Plot) {
    let seconds = || (0_u32..).map(f64::from);
    let line = |name, of: fn(&super::series::Summary) -> f64| Line {
        name,
        points: seconds().zip(report.series.iter().map(of)).collect(),
    };
    let last = report.series.len().saturating_sub(1);
    let last = seconds().nth(last).unwrap_or(0.0);
    let marks = vec![(0.0, "0 s".to_owned()), (last, format!("{last} s"))];
    let mut arrived = line("arrived", |second| float(second.deliveries));
    // The last second has begun only.
    if arrived.points.len() > 1 {
        arrived.points.pop();
    }
    let throughput = Plot {
        title: "Deliveries per second",
        unit: "",
        lines: vec![arrived],
        marks: marks.clone(),
    };
    let latency = Plot {
        title: "Latency over time",
        unit: "ms",
        lines: vec![
            line("p50", |second| ms(second.p50_us)),
            line("p99", |second| ms(second.p99_us)),
            line("max", |second| ms(second.max_us)),
        ],
        marks,
    };
    (throughput, latency)
}

impl Plot {
    fn draw(&self) -> String {
        let points = self.lines.iter().flat_map(|line| &line.points);
        let (mut x_min, mut x_max, mut y_max) = (f64::MAX, f64::MIN, f64::MIN_POSITIVE);
        for (x, y) in points {
            (x_min, x_max, y_max) = (x_min.min(*x), x_max.max(*x), y_max.max(*y));
        }
        let width = (x_max - x_min).max(f64::MIN_POSITIVE);
        let x_of = |x: f64| MARGIN + (x - x_min) / width * (WIDTH - 2.0 * MARGIN);
        let y_of = |y: f64| HEIGHT - MARGIN / 2.0 - y / y_max * (HEIGHT - MARGIN);
        let mut svg = format!(
            "<h2>{}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{}\">",
            self.title, self.title
        );
        for tick in 0..=TICKS {
            let value = y_max * f64::from(tick) / f64::from(TICKS);
            let y = y_of(value);
            push(
                &mut svg,
                format_args!(
                    "<line x1={MARGIN} x2={:.1} y1={y:.1} y2={y:.1} stroke=#e5e7eb />\
                     <text x={:.1} y={:.1} text-anchor=end>{}</text>",
                    WIDTH - MARGIN,
                    MARGIN - 6.0,
                    y + 4.0,
                    short(value, self.unit)
                ),
            );
        }
        for (x, name) in self
            .marks
            .iter()
            .filter(|(x, _)| (x_min..=x_max).contains(x))
        {
            push(
                &mut svg,
                format_args!(
                    "<text x={:.1} y={:.1} text-anchor=middle>{name}</text>",
                    x_of(*x),
                    HEIGHT - 8.0
                ),
            );
        }
        for (at, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let mut points = String::new();
            for (x, y) in &line.points {
                push(
                    &mut points,
                    format_args!("{:.1},{:.1} ", x_of(*x), y_of(*y)),
                );
            }
            let offset = f64::from(u32::try_from(at).unwrap_or(0)) * 18.0;
            push(
                &mut svg,
                format_args!(
                    "<polyline points=\"{points}\" fill=none stroke={colour} stroke-width=1.6 />\
                     <text x={:.1} y={:.1} style=\"fill:{colour}\">{}</text>",
                    WIDTH - MARGIN + 6.0,
                    MARGIN / 2.0 + offset,
                    line.name
                ),
            );
        }
        svg + "</svg>"
    }
}

fn begin(scenario: &str) -> String {
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{scenario}</title>\
         <style>{STYLE}</style><h1>orchestrator bench {scenario}</h1>"
    )
}

fn table(page: &mut String, rows: &[(String, String)]) {
    page.push_str("<table>");
    for (name, figure) in rows {
        push(
            page,
            format_args!("<tr><td>{name}</td><td>{figure}</td></tr>"),
        );
    }
    page.push_str("</table>");
}

fn end(page: String) -> String {
    page + "</html>\n"
}

/// A number that fits beside an axis.
fn short(value: f64, unit: &str) -> String {
    let number = match value {
        value if value >= 1e6 => format!("{:.1} M", value / 1e6),
        value if value >= 1e4 => format!("{:.0} k", value / 1e3),
        value if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    format!("{number} {unit}").trim_end().to_owned()
}

fn ms(micros: u64) -> f64 {
    float(micros) / 1e3
}

fn push(text: &mut String, piece: std::fmt::Arguments<'_>) {
    text.write_fmt(piece)
        .expect("writing to a string never fails");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_stays_within_its_frame_whatever_its_points() {
        for points in [
            vec![(0.0, 0.0)],
            vec![(1.0, 5.0), (2.0, 1e9)],
            vec![(3.0, 0.0), (3.0, 0.0)],
        ] {
            let plot = Plot {
                title: "t",
                unit: "ms",
                lines: vec![Line { name: "a", points }],
                marks: vec![(1.0, "one".into()), (9.0, "outside".into())],
            };
            let drawn = plot.draw();
            assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn}");
            assert!(!drawn.contains("outside"));
            let (_, rest) = drawn.split_once("points=\"").unwrap();
            let (points, _) = rest.split_once('"').unwrap();
            for point in points.split_whitespace() {
                let (x, y) = point.split_once(',').unwrap();
                assert!((0.0..=WIDTH).contains(&x.parse().unwrap()), "{point}");
                assert!((0.0..=HEIGHT).contains(&y.parse().unwrap()), "{point}");
            }
        }
    }
}
