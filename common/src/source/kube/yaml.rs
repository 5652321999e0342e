//! YAML text to a tree of nodes that know their line. Bounded in depth and in nodes, whatever the text says.
//!
//! The tree is built from the parser's events, one by one and without recursion: a loader that recurses would let a
//! file of brackets overflow the stack, and one that expands aliases would let ten lines fill the memory.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

/// Deepest nesting. Kubernetes objects of the kinds read here need fewer than 20 levels.
const DEPTH_MAX: usize = 64;
/// Most nodes per file; a pod as kubectl prints it has about 200. With it a document costs at most about 200 MiB while it
/// is read.
const NODES_MAX: usize = 2_000_000;
/// Most nodes that aliases may stand for, per file.
const ALIASED_NODES_MAX: usize = 100_000;

/// A value and the line on which it starts.
#[derive(Clone, Debug)]
pub(in crate::source) struct Node<'a> {
    pub(in crate::source) line: usize,
    /// Levels below and including this one, so that an alias cannot nest deeper than text can.
    depth: usize,
    /// Nodes below and including this one.
    size: usize,
    /// A tag of our own that stands before it, `!Exact` for example.
    pub(in crate::source) tag: Option<LocalTag>,
    pub(in crate::source) kind: Kind<'a>,
}

/// The tags that mean something to a reader; others are passed over, as they always were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::source) enum LocalTag {
    Exact,
    Prefix,
    Suffix,
    Presence,
}

impl LocalTag {
    fn of(tag: Option<&Tag>) -> Option<Self> {
        let tag = tag.filter(|tag| tag.handle == "!")?;
        let named = [
            ("Exact", Self::Exact),
            ("Prefix", Self::Prefix),
            ("Suffix", Self::Suffix),
            ("Presence", Self::Presence),
        ];
        named.into_iter().find(|(name, _)| *name == tag.suffix).map(|(_, tag)| tag)
    }
}

/// What a node is.
#[derive(Clone, Debug)]
pub(in crate::source) enum Kind<'a> {
    /// A scalar. `plain` is false if it was quoted or is tagged `!!str`, so that it can only be a text.
    Scalar { text: Cow<'a, str>, plain: bool },
    /// A sequence.
    Sequence(Vec<Node<'a>>),
    /// A mapping, in the order of the text; keys are unique.
    Mapping(Vec<(Cow<'a, str>, Node<'a>)>),
}

/// The text is no YAML, or more than is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) struct Refused {
    pub(in crate::source) line: usize,
    pub(in crate::source) reason: String,
}

/// The documents of `text` one after the other, without the empty ones, so that no more than one of them is held as a
/// tree. Ends with the first error.
///
/// **Errors**: no YAML, nested too deep, too many aliased nodes, a key twice, a key that is no text, a merge key.
pub(in crate::source) fn documents(text: &str) -> Documents<'_> {
    Documents::new(text, NODES_MAX)
}

/// See [`documents`].
pub(in crate::source) struct Documents<'a> {
    parser: Parser<'a, StrInput<'a>>,
    builder: Builder<'a>,
    nodes_max: usize,
    /// Events so far: every node is one and every collection one more.
    events: usize,
    ended: bool,
}

impl<'a> Documents<'a> {
    fn new(text: &'a str, nodes_max: usize) -> Self {
        let parser = Parser::new_from_str(text);
        Self { parser, builder: Builder::default(), nodes_max, events: 0, ended: false }
    }

    fn read(&mut self) -> Result<Option<Node<'a>>, Refused> {
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event
                .map_err(|e| Refused { line: e.marker().line(), reason: format!("no YAML: {}", e.info()) })?;
            let line = span.start.line();
            if self.events > self.nodes_max {
                let reason = format!("more than {} nodes; split the file", self.nodes_max);
                return Err(Refused { line, reason });
            }
            self.events += 1;
            self.builder.event(event, line)?;
            if let Some(document) = self.builder.document.take() {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Documents<'a> {
    type Item = Result<Node<'a>, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        // The parser is someone else's and has `unreachable!` in it: a file must not take the agent down.
        let read = catch_unwind(AssertUnwindSafe(|| self.read()));
        let read = read.unwrap_or_else(|_| {
            Err(Refused { line: 0, reason: "the YAML parser gave up on this text".into() })
        });
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

/// A collection that is still open.
struct Open<'a> {
    line: usize,
    anchor: usize,
    tag: Option<LocalTag>,
    kind: Kind<'a>,
    /// A mapping's key whose value has not come yet.
    key: Option<Cow<'a, str>>,
    /// Keys so far.
    keys: HashSet<Cow<'a, str>>,
    depth: usize,
    size: usize,
}

#[derive(Default)]
struct Builder<'a> {
    /// The one that is complete and was not taken yet.
    document: Option<Node<'a>>,
    open: Vec<Open<'a>>,
    anchors: HashMap<usize, Node<'a>>,
    aliased: usize,
}

impl<'a> Builder<'a> {
    fn event(&mut self, event: Event<'a>, line: usize) -> Result<(), Refused> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => Ok(()),
            Event::DocumentEnd => {
                self.anchors.clear();
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_str = |t: &Cow<'_, Tag>| t.is_yaml_core_schema() && t.suffix == "str";
                let plain = style == ScalarStyle::Plain && !tag.as_ref().is_some_and(is_str);
                let tag = LocalTag::of(tag.as_deref());
                self.add(Node { line, depth: 1, size: 1, tag, kind: Kind::Scalar { text, plain } }, anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.start(line, (anchor, LocalTag::of(tag.as_deref())), Kind::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.start(line, (anchor, LocalTag::of(tag.as_deref())), Kind::Mapping(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { line, anchor, tag, kind, depth, size, .. }) => {
                    self.add(Node { line, depth: depth + 1, size: size + 1, tag, kind }, anchor)
                }
                None => Err(Refused { line, reason: "a collection ends that never began".into() }),
            },
            Event::Alias(anchor) => self.alias(anchor, line),
        }
    }

    fn start(
        &mut self,
        line: usize,
        (anchor, tag): (usize, Option<LocalTag>),
        kind: Kind<'a>,
    ) -> Result<(), Refused> {
        self.open.push(Open { line, anchor, tag, kind, key: None, keys: HashSet::new(), depth: 0, size: 0 });
        self.check_depth(0, line)
    }

    fn check_depth(&self, below: usize, line: usize) -> Result<(), Refused> {
        match self.open.len() + below > DEPTH_MAX {
            true => Err(Refused { line, reason: format!("nested deeper than {DEPTH_MAX} levels") }),
            false => Ok(()),
        }
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<(), Refused> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Refused {
                line,
                reason: "an alias of an anchor that is not complete before it".into(),
            });
        };
        self.aliased += node.size;
        if self.aliased > ALIASED_NODES_MAX {
            let reason = format!("aliases stand for more than {ALIASED_NODES_MAX} nodes");
            return Err(Refused { line, reason });
        }
        self.check_depth(node.depth, line)?;
        let node = Node { line, ..node.clone() };
        self.add(node, 0)
    }

    /// Puts a finished node where it belongs: into the innermost open collection, or as a document.
    fn add(&mut self, node: Node<'a>, anchor: usize) -> Result<(), Refused> {
        if anchor > 0 {
            self.aliased += node.size; // the copy kept for aliases counts too
            if self.aliased > ALIASED_NODES_MAX {
                let reason = format!("anchors hold more than {ALIASED_NODES_MAX} nodes");
                return Err(Refused { line: node.line, reason });
            }
            self.anchors.insert(anchor, node.clone());
        }
        let Some(parent) = self.open.last_mut() else {
            if !is_null(&node) {
                self.document = Some(node);
            }
            return Ok(());
        };
        parent.depth = parent.depth.max(node.depth);
        parent.size += node.size;
        let line = node.line;
        match (&mut parent.kind, parent.key.take()) {
            (Kind::Sequence(items), _) => items.push(node),
            (Kind::Mapping(entries), Some(key)) => entries.push((key, node)),
            (Kind::Mapping(_), None) => {
                let key = key(node)?;
                if !parent.keys.insert(key.clone()) {
                    let reason = format!("the key {key:?} stands twice in one mapping");
                    return Err(Refused { line, reason });
                }
                parent.key = Some(key);
            }
            (Kind::Scalar { .. }, _) => {} // a scalar is never open
        }
        Ok(())
    }
}

fn key(node: Node<'_>) -> Result<Cow<'_, str>, Refused> {
    match node.kind {
        Kind::Scalar { text, plain: true } if text == "<<" => Err(Refused {
            line: node.line,
            reason: "merge keys (<<) are not read; write the fields out".into(),
        }),
        Kind::Scalar { text, .. } => Ok(text),
        _ => Err(Refused { line: node.line, reason: "a key that is no text".into() }),
    }
}

/// Whether the node says nothing: absent and null are the same in Kubernetes objects.
pub(in crate::source) fn is_null(node: &Node<'_>) -> bool {
    matches!(&node.kind, Kind::Scalar { text, plain: true }
        if matches!(&**text, "" | "~" | "null" | "Null" | "NULL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, nodes_max: usize) -> Result<Vec<Node<'_>>, Refused> {
        Documents::new(text, nodes_max).collect()
    }

    #[test]
    fn nodes_are_counted() {
        let text = "- a\n".repeat(100);
        assert_eq!(parse(&text, 110).map(|documents| documents.len()), Ok(1));
        let refused = parse(&text, 50).unwrap_err();
        assert_eq!(refused.reason, "more than 50 nodes; split the file");
        assert!((45..=50).contains(&refused.line), "{}", refused.line);
    }

    #[test]
    fn documents_before_an_error_are_read_and_none_behind_it() {
        let mut read = documents("a: 1\n---\nb: 2\n---\n[c\n---\nd: 4\n");
        assert_eq!(read.by_ref().take(2).map(|document| document.unwrap().line).collect::<Vec<_>>(), [1, 3]);
        assert!(read.next().is_some_and(|refused| refused.is_err()));
        assert!(read.next().is_none());
    }

    #[test]
    fn nodes_know_their_lines_and_whether_they_were_quoted() {
        let text = "# comment\na: 1\nb:\n- 'x'\n- !!str 2\n---\nnull\n---\n- |\n  long\n";
        let documents = parse(text, NODES_MAX).unwrap();
        let [first, second] = &documents[..] else { panic!("{documents:?}") };
        assert_eq!((first.line, second.line), (2, 9));
        let Kind::Mapping(entries) = &first.kind else { panic!("{first:?}") };
        let Kind::Sequence(items) = &entries[1].1.kind else { panic!("{first:?}") };
        let shown = |node: &Node<'_>| match &node.kind {
            Kind::Scalar { text, plain } => (node.line, text.to_string(), *plain),
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(&entries[0].1), (2, "1".into(), true));
        assert_eq!(shown(&items[0]), (4, "x".into(), false));
        assert_eq!(shown(&items[1]), (5, "2".into(), false));
    }
}
