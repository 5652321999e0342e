//! A settings file in YAML that is no Kubernetes object: its text as a tree that keeps lines for reports.

use super::yaml::{self, Kind, Node, is_null};
use crate::config::Problem;

/// A value and the line on which it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// From 1.
    pub line: usize,
    /// What stands there.
    pub value: Value,
}

/// What a tree's node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Nothing, as if it were not there.
    Null,
    /// A text, number or boolean, as it was written; `quoted` can only be a text.
    Scalar {
        /// The characters.
        text: String,
        /// In quotes, or a block.
        quoted: bool,
    },
    /// A list.
    List(Vec<Tree>),
    /// A mapping, in the order of the text; keys are unique.
    Mapping(Vec<(String, Tree)>),
}

/// The only document of `text`.
///
/// **Errors:** no YAML, several documents or none; bounded as for Kubernetes objects.
pub fn read(file: &str, text: &str) -> Result<Tree, Box<Problem>> {
    let problem = |line, seen: String, allowed: &str| {
        Box::new(Problem {
            file: file.to_owned(),
            line,
            object: String::new(),
            field: String::new(),
            seen,
            allowed: allowed.to_owned(),
        })
    };
    let documents: Result<Vec<_>, _> = yaml::documents(text).collect();
    let documents = documents.map_err(|refused| problem(refused.line, refused.reason, ""))?;
    match &documents[..] {
        [only] => Ok(tree(only)),
        [] => Err(problem(0, "the file is empty".into(), "allowed: one YAML document")),
        [_, second, ..] => {
            Err(problem(second.line, "a second document".into(), "allowed: one YAML document"))
        }
    }
}

/// The parser has bounded the depth.
fn tree(node: &Node<'_>) -> Tree {
    let value = match &node.kind {
        _ if is_null(node) => Value::Null,
        Kind::Scalar { text, plain } => Value::Scalar { text: text.to_string(), quoted: !plain },
        Kind::Sequence(items) => Value::List(items.iter().map(tree).collect()),
        Kind::Mapping(entries) => {
            Value::Mapping(entries.iter().map(|(key, node)| (key.to_string(), tree(node))).collect())
        }
    };
    Tree { line: node.line, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_document_with_its_lines() {
        let read = read("a.yaml", "# why\na: 1\nb: ['x', ~]\n").unwrap();
        let Value::Mapping(entries) = &read.value else { panic!("{read:?}") };
        assert_eq!((entries[0].0.as_str(), entries[0].1.line), ("a", 2));
        assert_eq!(entries[0].1.value, Value::Scalar { text: "1".into(), quoted: false });
        let Value::List(items) = &entries[1].1.value else { panic!("{read:?}") };
        assert_eq!(items[0].value, Value::Scalar { text: "x".into(), quoted: true });
        assert_eq!(items[1].value, Value::Null);
    }

    #[test]
    fn anything_else_is_a_problem_with_its_line() {
        for (text, wanted) in [
            ("", "a.yaml: the file is empty; allowed: one YAML document"),
            ("a: 1\n---\nb: 1\n", "a.yaml:3: a second document; allowed: one YAML document"),
        ] {
            assert_eq!(read("a.yaml", text).unwrap_err().to_string(), wanted);
        }
        assert!(read("a.yaml", "a: [").is_err());
    }
}
