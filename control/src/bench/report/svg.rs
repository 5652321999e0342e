//! The little of SVG that plots need: text, bars, lines and marks in a theme for light and dark, escaped once, here.

use std::fmt::Write as _;

use super::figures::{plain, wrap};

/// Width of a plot on the page, in its own units.
pub(crate) const WIDTH: f64 = 400.0;
/// Distance of everything from the edge.
pub(crate) const EDGE: f64 = 16.0;
/// Classes of modes: `f0` fills, `l0` draws a line. More modes than these share them, with other marks.
pub(crate) const COLOURS: usize = 8;

/// Colours of modes, light and dark; the first is the reference's, the last that of the direct way. Each has at least
/// 4.5:1 against its background.
const MODES: [(&str, &str); COLOURS] = [
    ("#0a5bc4", "#78aeff"),
    ("#b34700", "#ff9d4d"),
    ("#7a3fc0", "#c3a1ff"),
    ("#00705c", "#3fd0b0"),
    ("#b4226f", "#ff86bd"),
    ("#5f6b00", "#c3cf4a"),
    ("#0b7285", "#5cc9dd"),
    ("#5c6570", "#a5afba"),
];
/// Background, text, secondary text, lines of the grid.
const PAPER: [(&str, &str); 4] =
    [("#ffffff", "#10151b"), ("#16202b", "#e8edf2"), ("#566270", "#a3b0bd"), ("#dde3e9", "#2b3541")];

/// Where a text begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// Where a plot will stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// In a page that has [`theme`].
    Page,
    /// In a file of its own.
    File,
}

/// Kinds of text, with their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Font {
    Head,
    Title,
    Label,
    Value,
    Small,
}

impl Font {
    fn class(self) -> &'static str {
        match self {
            Self::Head => "h",
            Self::Title => "t",
            Self::Label => "b",
            Self::Value => "v",
            Self::Small => "s",
        }
    }

    pub(crate) fn size(self) -> f64 {
        match self {
            Self::Head => 18.0,
            Self::Title => 15.0,
            Self::Label | Self::Value => 13.0,
            Self::Small => 12.0,
        }
    }

    /// Width of a letter as a share of the size, in a wide font.
    fn letter(self) -> f64 {
        match self {
            Self::Head | Self::Title => 0.53,
            Self::Value => 0.56,
            Self::Label | Self::Small => 0.52,
        }
    }

    /// Letters that fit.
    pub(crate) fn letters(self, width: f64) -> usize {
        (width / (self.size() * self.letter())).max(1.0) as usize
    }

    /// Room that letters need at most.
    pub(crate) fn room(self, text: &str) -> f64 {
        text.chars().count() as f64 * self.size() * self.letter()
    }
}

/// Style rules of all plots, for the page or one file.
pub(crate) fn theme() -> String {
    let mut css = format!(
        ".plot text{{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;\
         font-variant-numeric:tabular-nums}}.plot .h{{font-size:{}px;font-weight:600}}.plot .t{{font-size:{}px;font-weight:600}}.plot .b{{font-size:{}px}}\
         .plot .v{{font-size:{}px;font-weight:600}}.plot .s{{font-size:{}px}}\
         .plot .l{{fill:none;stroke-width:2;stroke-linejoin:round}}.plot .d1{{stroke-dasharray:7 3}}\
         .plot .d2{{stroke-dasharray:2 3}}.plot .d3{{stroke-dasharray:9 3 2 3}}.plot .part{{opacity:.68}}\
         .plot .w{{stroke-width:1.5;fill:none}}.plot .thin{{stroke-width:1;opacity:.55}}",
        Font::Head.size(),
        Font::Title.size(),
        Font::Label.size(),
        Font::Value.size(),
        Font::Small.size()
    );
    let rules = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        let [paper, ink, dim, grid] = PAPER.each_ref().map(pick);
        let mut css = format!(
            ".plot .paper{{fill:{paper}}}.plot .h,.plot .t,.plot .b,.plot .v{{fill:{ink}}}.plot .s{{fill:{dim}}}\
             .plot .g{{stroke:{grid};stroke-width:1}}.plot .w{{stroke:{ink}}}.plot .gap{{fill:{paper}}}"
        );
        for (nth, colour) in MODES.iter().map(pick).enumerate() {
            let _infallible =
                write!(css, ".plot .f{nth}{{fill:{colour}}}.plot .l{nth}{{stroke:{colour};stroke-width:2}}");
        }
        css
    };
    css.push_str(&rules(|pair| pair.0));
    let _infallible =
        write!(css, "@media (prefers-color-scheme:dark) and (not print){{{}}}", rules(|pair| pair.1));
    css
}

/// What a plot shows, for those who see it and those who hear it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caption {
    /// Unique in the page.
    pub(crate) id: String,
    pub(crate) title: String,
    /// Unit and conditions.
    pub(crate) sub: String,
    /// All figures in words.
    pub(crate) description: String,
}

/// Elements, appended one after the other.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    body: String,
}

impl Canvas {
    pub(crate) fn text(&mut self, (x, y): (f64, f64), font: Font, anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        let (class, text) = (font.class(), escape(text));
        self.push(format_args!("<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\"{anchor}>{text}</text>"));
    }

    /// Lines of text from `y` on; returns where the next would stand.
    pub(crate) fn paragraph(&mut self, (x, y): (f64, f64), font: Font, text: &str, width: f64) -> f64 {
        let mut y = y;
        for line in wrap(text, font.letters(width)) {
            self.text((x, y), font, Anchor::Start, &line);
            y += font.size() * 1.35;
        }
        y
    }

    /// A bar from its upper left corner.
    pub(crate) fn bar(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str) {
        let width = width.max(0.0);
        self.push(format_args!(
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        ));
    }

    pub(crate) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.push(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    pub(crate) fn polyline(&mut self, points: &[(f64, f64)], class: &str) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.push(format_args!("<polyline class=\"l {class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// A mark whose shape tells modes apart where colours do not.
    pub(crate) fn mark(&mut self, (x, y): (f64, f64), nth: usize) {
        let class = format!("f{}", nth % COLOURS);
        let shape: &[(f64, f64)] = match nth % 5 {
            0 => {
                return self
                    .push(format_args!("<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\"/>"));
            }
            1 => &[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
            2 => &[(0.0, -5.0), (4.6, 3.6), (-4.6, 3.6)],
            3 => &[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)],
            _ => &[(0.0, 5.0), (4.6, -3.6), (-4.6, -3.6)],
        };
        let points: Vec<String> =
            shape.iter().map(|(dx, dy)| format!("{:.1},{:.1}", x + dx, y + dy)).collect();
        self.push(format_args!("<polygon class=\"{class}\" points=\"{}\"/>", points.join(" ")));
    }

    /// Another drawing, moved.
    pub(crate) fn place(&mut self, (x, y): (f64, f64), other: &Self) {
        self.push(format_args!("<g transform=\"translate({x:.1} {y:.1})\">{}</g>", other.body));
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        let _infallible = self.body.write_fmt(element);
    }

    /// The whole element.
    pub(crate) fn finish(self, caption: &Caption, (width, height): (f64, f64), frame: Frame) -> String {
        let (id, title) = (escape(&caption.id), escape(&caption.title));
        let (description, body) = (escape(&caption.description), self.body);
        let own = match frame {
            Frame::Page => String::new(),
            Frame::File => format!(
                "<style>{}</style><rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\" rx=\"8\"/>",
                theme()
            ),
        };
        let size = match frame {
            Frame::Page => String::new(),
            Frame::File => format!(" width=\"{width:.0}\" height=\"{height:.0}\""),
        };
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\"{size} viewBox=\"0 0 {width:.0} {height:.0}\" \
             role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{title}</title>\
             <desc id=\"{id}-d\">{description}</desc>{own}{body}</svg>\n"
        )
    }
}

/// Text that is safe between tags and in quoted attributes, of HTML and of XML.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No character of XML 1.0.
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Source: WCAG 2.2, definition of relative luminance.
    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let value = u8::from_str_radix(colour.get(at..at + 2).unwrap(), 16).unwrap();
            let share = f64::from(value) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn colours_are_readable_in_light_and_dark() {
        let [paper, ink, dim, _grid] = PAPER;
        for (light, dark) in MODES.into_iter().chain([ink, dim]) {
            for (colour, paper) in [(light, paper.0), (dark, paper.1)] {
                assert!(
                    contrast(colour, paper) >= 4.5,
                    "{colour} on {paper}: {:.2}",
                    contrast(colour, paper)
                );
            }
        }
    }

    #[test]
    fn text_cannot_leave_its_place() {
        assert_eq!(escape("<a href=\"x\">&'"), "&lt;a href=&quot;x&quot;&gt;&amp;&#39;");
        assert_eq!(escape("a\u{0}b\u{1b}c\u{ffff}"), "a b c\u{fffd}");
    }

    #[test]
    fn a_file_has_its_own_style_and_background_and_a_page_has_one_for_all() {
        let draw = |frame| Canvas::default().finish(&Caption::default(), (10.0, 10.0), frame);
        assert!(draw(Frame::File).contains("<style>") && draw(Frame::File).contains("class=\"paper\""));
        assert!(!draw(Frame::Page).contains("<style>"));
    }
}
