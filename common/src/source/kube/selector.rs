//! LabelSelector: `matchLabels` and `matchExpressions`.

use std::sync::Arc;

use super::reader::{Field, Labels, selects};

/// Which labels are meant; without any demand, all are.
#[derive(Debug, Default)]
pub(super) struct Selector {
    labels: Labels,
    expressions: Vec<(Arc<str>, Test)>,
}

#[derive(Debug)]
enum Test {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub(super) fn read(field: &Field<'_>) -> Self {
        field.only(&["matchLabels", "matchExpressions"]);
        Self {
            labels: field.labels("matchLabels"),
            expressions: field.items("matchExpressions").iter().filter_map(expression).collect(),
        }
    }

    /// Whether these labels are meant.
    pub(super) fn selects(&self, labels: &Labels) -> bool {
        let holds = |(key, test): &(Arc<str>, Test)| match (test, labels.get(key)) {
            (Test::In(values), value) => value.is_some_and(|value| values.contains(value)),
            (Test::NotIn(values), value) => value.is_none_or(|value| !values.contains(value)),
            (Test::Exists, value) => value.is_some(),
            (Test::DoesNotExist, value) => value.is_none(),
        };
        selects(&self.labels, labels) && self.expressions.iter().all(holds)
    }
}

fn expression(item: &Field<'_>) -> Option<(Arc<str>, Test)> {
    item.only(&["key", "operator", "values"]);
    let Some(key) = item.text_at("key") else {
        item.problem("no key", "allowed: key, operator and values");
        return None;
    };
    let Some(operator) = item.get("operator") else {
        item.problem("no operator", "allowed: In, NotIn, Exists, DoesNotExist");
        return None;
    };
    let values = || item.items("values").iter().filter_map(|value| value.text()).map(Arc::from).collect();
    let kinds = ["In", "NotIn", "Exists", "DoesNotExist"].map(|kind| (kind, kind));
    let test = match operator.one_of(&kinds)? {
        "In" => Test::In(values()),
        "NotIn" => Test::NotIn(values()),
        "Exists" => Test::Exists,
        _ => Test::DoesNotExist,
    };
    Some((key.into(), test))
}
