//! Objects as the API server sends them: one that cannot be understood takes no other with it.
//!
//! Pure. A list or an event is one JSON text, and the API server itself checks little of some fields, as of a Service's
//! status, so that whoever may write one object could blind kvip to all of its kind.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The zero time of Go, which it also reads as none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

/// An object of the API.
#[derive(Debug, Clone)]
pub struct Read<K> {
    metadata: ObjectMeta,
    /// What it says, or why that cannot be understood.
    pub object: Result<K, String>,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Read<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let metadata = ObjectMeta::deserialize(&value["metadata"]).map_err(D::Error::custom)?;
        Ok(Self { metadata, object: object(value).map_err(|error| error.to_string()) })
    }
}

impl<K: Resource<DynamicType = ()>> Resource for Read<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The object that `value` is.
pub fn object<K: DeserializeOwned>(mut value: Value) -> serde_json::Result<K> {
    K::deserialize(&value)
        .or_else(|error| if date_conditions(&mut value) { K::deserialize(&value) } else { Err(error) })
}

/// Gives each condition without a time the zero time; whether there was one. `lastTransitionTime` must be there (meta/v1
/// `Condition`), but in a Service's status the API server does not insist, and sends null.
fn date_conditions(value: &mut Value) -> bool {
    let conditions = value.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    let objects = conditions.into_iter().flatten().filter_map(Value::as_object_mut);
    let undated = objects.filter(|condition| condition.get("lastTransitionTime").is_none_or(Value::is_null));
    undated.map(|condition| condition.insert("lastTransitionTime".into(), NO_TIME.into())).count() > 0
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use serde_json::json;

    use super::*;

    /// A Service `web` with that status.
    fn read(status: &Value) -> Read<Service> {
        serde_json::from_value(json!({"metadata": {"name": "web"}, "status": status})).unwrap()
    }

    #[test]
    fn a_condition_without_a_time_is_read() {
        let dated = json!({"type": "a.b/C", "status": "True", "reason": "R", "message": "", "lastTransitionTime":
            "2026-01-05T10:00:00Z"});
        let undated = json!({"type": "a.b/D", "status": "True", "reason": "R", "message": ""});
        let mut of_null = undated.clone();
        of_null["lastTransitionTime"] = Value::Null;
        let service = read(&json!({"conditions": [dated, undated, of_null]})).object.unwrap();
        let conditions = service.status.unwrap().conditions.unwrap();
        let times: Vec<String> =
            conditions.iter().map(|one| one.last_transition_time.0.to_string()).collect();
        assert_eq!(times, ["2026-01-05T10:00:00Z", NO_TIME, NO_TIME]);
    }

    #[test]
    fn what_cannot_be_understood_still_has_a_name() {
        for status in [json!({"conditions": [5]}), json!(5)] {
            let read = read(&status);
            assert_eq!(read.meta().name.as_deref(), Some("web"));
            assert!(read.object.is_err(), "{status}");
        }
    }
}
