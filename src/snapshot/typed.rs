//! Reads a value as an object of the API's types, and names the field that cannot be read and those that no type has, as
//! an API server would that refuses them.
//!
//! Pure. A field is written as `spec.ports[0].port`.

use serde::de::{self, DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer as _, Visitor};
use serde_json::Value;
use serde_path_to_error::{Segment, Track};

use crate::config::closest;
use crate::report::words::short;

/// What is wrong with a number where text is wanted, and the way out.
pub(super) const NO_TEXT: &str = "is no text: put it in quotes";

/// What is wanted where a map or a structure is.
const MAP: &str = "names and values, as NAME: VALUE";

/// The object that `value` is, and what is to be said of each of its fields that objects of its kind do not have.
///
/// # Errors
/// Says which field cannot be read and what is wanted there.
pub(super) fn read<K: DeserializeOwned>(value: &Value) -> Result<(K, Vec<String>), String> {
    let mut unknown = Vec::new();
    let mut track = Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    match serde_ignored::deserialize(tracked, |path| unknown.push(steps(&path))) {
        Ok(object) => Ok((object, unknown.iter().map(|steps| no_field::<K>(steps)).collect())),
        Err(error) => Err(unreadable(value, &track.path(), &error)),
    }
}

/// One step into a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

fn steps(path: &serde_ignored::Path) -> Vec<Step> {
    use serde_ignored::Path;
    let (parent, step) = match path {
        Path::Root => return Vec::new(),
        Path::Seq { parent, index } => (parent, Some(Step::Item(*index))),
        Path::Map { parent, key } => (parent, Some(Step::Field(key.clone()))),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            (parent, None)
        }
    };
    let mut steps = steps(parent);
    steps.extend(step);
    steps
}

fn written(steps: &[Step]) -> String {
    let parts = steps.iter().map(|step| match step {
        Step::Field(name) => format!(".{name}"),
        Step::Item(index) => format!("[{index}]"),
    });
    parts.collect::<Vec<_>>().concat().trim_start_matches('.').to_owned()
}

fn no_field<K: DeserializeOwned>(steps: &[Step]) -> String {
    let near = steps.split_last().and_then(|(last, above)| match last {
        Step::Field(name) => closest(name, fields::<K>(above).iter().map(|field| (*field, *field))),
        Step::Item(_) => None,
    });
    let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    format!("{} is no field of it{hint}", written(steps))
}

/// What cannot be read of `value`, at `path`.
fn unreadable(value: &Value, path: &serde_path_to_error::Path, error: &serde_json::Error) -> String {
    let error = error.to_string();
    let found = path.iter().try_fold(value, |value, segment| match segment {
        Segment::Seq { index } => value.get(index),
        Segment::Map { key } => value.get(key),
        Segment::Enum { .. } | Segment::Unknown => None,
    });
    let wanted = error.rsplit_once(", expected ").map(|(_, wanted)| wanted);
    let (Some(found), Some(wanted)) = (found, wanted) else { return format!("{path}: {error}") };
    let (is_text, is_scalar) = (found.is_string(), !found.is_array() && !found.is_object());
    let said = found.as_str().unwrap_or_default();
    let why = match wanted {
        "a string" if found.is_number() || found.is_boolean() => {
            return format!("{path} = {} {NO_TEXT}", short(found.to_string()));
        }
        "a string" => "text",
        "a boolean" if ["true", "false"].contains(&said) => "true or false, without quotes",
        "a boolean" => "true or false",
        "i32" | "i64" | "u32" | "u64" if said.parse::<i32>().is_ok() => "a number, without quotes",
        "i32" | "i64" | "u32" | "u64" if is_text || !is_scalar => "a number",
        "i32" | "i64" | "u32" | "u64" | "a 32-bit integer" => "a whole number of 32 bits",
        "IntOrString" => "a number or a name",
        "a sequence" => "a list, each of its entries after a -",
        "a map" => MAP,
        structure if structure.starts_with(char::is_uppercase) => MAP,
        _ => return format!("{path}: {error}"),
    };
    let found = if is_scalar { format!(" = {}", short(found.to_string())) } else { String::new() };
    format!("{path}{found}: {why}")
}

/// The fields that what is at `steps` in a `K` may have; none where it is no structure.
fn fields<K: DeserializeOwned>(steps: &[Step]) -> &'static [&'static str] {
    let mut found: &[&str] = &[];
    // It ends with an error as soon as the fields are known.
    let _ = K::deserialize(Asked { steps, found: &mut found });
    found
}

/// Asks a type for the fields of what is at `steps` in it, by going there with an object that has nothing else.
struct Asked<'a> {
    steps: &'a [Step],
    found: &'a mut &'static [&'static str],
}

impl Asked<'_> {
    /// What is a step further in. Nothing else follows beside it.
    fn next(&mut self) -> Asked<'_> {
        let steps = std::mem::take(&mut self.steps);
        Asked { steps: steps.get(1..).unwrap_or_default(), found: self.found }
    }
}

impl<'de> de::Deserializer<'de> for Asked<'_> {
    type Error = de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("no structure"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        if self.steps.is_empty() {
            *self.found = fields;
            return Err(Self::Error::custom("found"));
        }
        visitor.visit_map(self)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_map(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_seq(self)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

impl<'de> de::MapAccess<'de> for Asked<'_> {
    type Error = de::value::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Self::Error> {
        match self.steps.first() {
            Some(Step::Field(name)) => seed.deserialize(name.as_str().into_deserializer()).map(Some),
            _ => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Self::Error> {
        seed.deserialize(self.next())
    }
}

impl<'de> de::SeqAccess<'de> for Asked<'_> {
    type Error = de::value::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Self::Error> {
        match self.steps.first() {
            Some(Step::Item(_)) => seed.deserialize(self.next()).map(Some),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use k8s_openapi::api::discovery::v1::EndpointSlice;

    use super::*;

    /// What is said of this object's fields, or of the one that cannot be read.
    #[track_caller]
    fn check<K: DeserializeOwned>(json: &str, said: &[&str]) {
        let found = match read::<K>(&serde_json::from_str(json).unwrap()) {
            Ok((_, unknown)) => unknown,
            Err(error) => vec![error],
        };
        assert_eq!(found, said, "{json}");
    }

    #[test]
    fn fields_that_no_type_has_are_told_with_the_nearest() {
        check::<Service>(
            r#"{"metdata": {}, "spec": {"ports": [{"port": 80}, {"port": 81, "protcol": "UDP"}],
                "externalTraficPolicy": "Local", "loadBalancerSourceRange": ["10.0.0.0/8"], "weight": 3}}"#,
            &[
                "metdata is no field of it; did you mean metadata?",
                "spec.externalTraficPolicy is no field of it; did you mean externalTrafficPolicy?",
                "spec.loadBalancerSourceRange is no field of it; did you mean loadBalancerSourceRanges?",
                "spec.ports[1].protcol is no field of it; did you mean protocol?",
                "spec.weight is no field of it",
            ],
        );
        check::<EndpointSlice>(
            r#"{"addressType": "IPv4", "endpoints": [{"addresses": [], "condition": {"ready": false}}]}"#,
            &["endpoints[0].condition is no field of it; did you mean conditions?"],
        );
        check::<EndpointSlice>(
            r#"{"metadata": {"labels": {"any": "label"}, "managedFields": [{"fieldsV1": {"f:any": {}}}]},
                "endpoints": [{"addresses": [], "conditions": {"redy": false}}]}"#,
            &["endpoints[0].conditions.redy is no field of it; did you mean ready?"],
        );
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_field_and_what_is_wanted() {
        for (spec, said) in [
            (r#"{"ports": [{"port": "80"}]}"#, r#"spec.ports[0].port = "80": a number, without quotes"#),
            (r#"{"ports": [{"port": "http"}]}"#, r#"spec.ports[0].port = "http": a number"#),
            (r#"{"ports": [{"port": 8.5}]}"#, "spec.ports[0].port = 8.5: a whole number of 32 bits"),
            (
                r#"{"ports": [{"port": 5000000000}]}"#,
                "spec.ports[0].port = 5000000000: a whole number of 32 bits",
            ),
            (r#"{"ports": [{"targetPort": true}]}"#, "spec.ports[0].targetPort = true: a number or a name"),
            (r#"{"ports": 80}"#, "spec.ports = 80: a list, each of its entries after a -"),
            (r#"{"ports": {"port": 80}}"#, "spec.ports: a list, each of its entries after a -"),
            (r#"{"ports": [80]}"#, "spec.ports[0] = 80: names and values, as NAME: VALUE"),
            (r#"{"selector": "web"}"#, r#"spec.selector = "web": names and values, as NAME: VALUE"#),
            (r#"{"selector": {"app": 5}}"#, "spec.selector.app = 5 is no text: put it in quotes"),
            (r#"{"clusterIPs": [null]}"#, "spec.clusterIPs[0] = null: text"),
            (r#"{"type": ["ClusterIP"]}"#, "spec.type: text"),
            (
                r#"{"publishNotReadyAddresses": "true"}"#,
                r#"spec.publishNotReadyAddresses = "true": true or false, without quotes"#,
            ),
            (r#"{"publishNotReadyAddresses": 1}"#, "spec.publishNotReadyAddresses = 1: true or false"),
        ] {
            check::<Service>(&format!(r#"{{"spec": {spec}}}"#), &[said]);
        }
    }
}
