//! YAML of objects that the lab itself does not make, as short as the API allows.

use std::fmt::Write as _;

use culvert::lab::Pod;

/// A Service of namespace `default`.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    labels: String,
    vips: Vec<String>,
    selector: Option<(String, String)>,
    ports: Vec<String>,
    spec: String,
}

impl Service {
    /// A service with these addresses, one or two; none makes it headless.
    pub fn new(name: &str, vips: &[&str]) -> Self {
        let vips = vips.iter().map(|&vip| vip.to_owned()).collect();
        Self {
            name: name.to_owned(),
            labels: String::new(),
            vips,
            selector: None,
            ports: Vec::new(),
            spec: String::new(),
        }
    }

    /// A label of its own.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels = format!(", labels: {{{key}: {value}}}");
        self
    }

    /// Its endpoints are the pods with this label.
    pub fn selects(mut self, key: &str, value: &str) -> Self {
        self.selector = Some((key.to_owned(), value.to_owned()));
        self
    }

    /// A port and its target, a number or a name.
    pub fn port(self, port: u16, target: &str) -> Self {
        self.named_port(&format!("p{port}"), port, target)
    }

    /// The same with a name, which says what it speaks.
    pub fn named_port(mut self, name: &str, port: u16, target: &str) -> Self {
        self.ports.push(format!("  - {{name: {name}, port: {port}, targetPort: {target}}}\n"));
        self
    }

    /// One more field of `spec`.
    pub fn with(mut self, field: &str, value: &str) -> Self {
        let _infallible = writeln!(self.spec, "  {field}: {value}");
        self
    }

    /// Its document.
    pub fn yaml(&self) -> String {
        let Self { name, labels, spec, .. } = self;
        let first = self.vips.first().map_or("None", String::as_str);
        let all = self.vips.iter().map(|vip| format!("{vip:?}")).collect::<Vec<_>>().join(", ");
        let all = if all.is_empty() { "None".to_owned() } else { all };
        let selector =
            self.selector.as_ref().map_or(String::new(), |(k, v)| format!("  selector: {{{k}: {v:?}}}\n"));
        let ports = self.ports.concat();
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default{labels}}}\nspec:\n  clusterIP: {first:?}\n  \
             clusterIPs: [{all}]\n{selector}{spec}  ports:\n{ports}"
        )
    }
}

/// A policy of either kind, with `spec` as YAML of its own indentation.
pub fn policy(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n{spec}"
    )
}

/// A Namespace, in the mesh or not.
pub fn namespace(name: &str, captured: bool) -> String {
    let mode = if captured { "ambient" } else { "none" };
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{istio.io/dataplane-mode: {mode}}}\n"
    )
}

/// The pods' documents, all ready but those in `unready`.
pub fn pods<'a>(pods: impl IntoIterator<Item = &'a Pod>, unready: &[&str]) -> String {
    pods.into_iter().map(|pod| pod.document(!unready.contains(&pod.spec.name.as_str()))).collect()
}
