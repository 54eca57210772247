//! How commands and their fields are read: borrowed where the frame has the text as it is, `null`
//! as absent, and objects by name only, never by place. Knows serde, and no method's meaning.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{Command, Delta, MAX_LABEL, Method, ResumeSubscription};

/// A value, `null` being its default.
pub(super) fn or_default<'de, T, D>(d: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

/// A text, `null` being the empty one.
pub(super) fn text<'de, D: Deserializer<'de>>(d: D) -> Result<Cow<'de, str>, D::Error> {
    or_default::<Text<'de>, D>(d).map(|text| text.0)
}

/// A text of which at most [`MAX_LABEL`] bytes matter.
pub(super) fn label<'de, D: Deserializer<'de>>(d: D) -> Result<Cow<'de, str>, D::Error> {
    Ok(match text(d)? {
        Cow::Borrowed(label) => Cow::Borrowed(&label[..label.floor_char_boundary(MAX_LABEL)]),
        Cow::Owned(label) => Cow::Owned(label[..label.floor_char_boundary(MAX_LABEL)].to_owned()),
    })
}

/// A payload: any value that is there, `null` too.
pub(super) fn payload<'de, D: Deserializer<'de>>(d: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(d).map(Some)
}

/// An object, or `null`.
pub(super) fn object<'de, T, D>(d: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<Object<T>>::deserialize(d)?.map(|object| object.0))
}

/// The one kind of delta that there is, or none.
pub(super) fn delta<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Delta>, D::Error> {
    match text(d)?.as_ref() {
        "" => Ok(None),
        "fossil" => Ok(Some(Delta::Fossil)),
        _ => Err(D::Error::custom("unknown delta")),
    }
}

/// Subscriptions by channel; those that are `null` are left out.
pub(super) fn subs<'de, D>(d: D) -> Result<BTreeMap<Cow<'de, str>, ResumeSubscription<'de>>, D::Error>
where
    D: Deserializer<'de>,
{
    or_default::<Entries<Object<ResumeSubscription<'de>>>, D>(d).map(|entries| entries.into_map(|sub| sub.0))
}

/// Texts by name; those that are `null` are left out.
pub(super) fn headers<'de, D>(d: D) -> Result<BTreeMap<Cow<'de, str>, Cow<'de, str>>, D::Error>
where
    D: Deserializer<'de>,
{
    or_default::<Entries<Text<'de>>, D>(d).map(|entries| entries.into_map(|text| text.0))
}

/// A text that is borrowed unless it has escapes.
#[derive(Default, serde::Deserialize)]
#[serde(transparent)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A `T` from an object: a derived reader would also take a list, by place.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ByName<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ByName<T> {
            type Value = Object<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        d.deserialize_map(ByName(PhantomData))
    }
}

/// The entries of an object with any keys, in their order.
struct Entries<'a, T>(Vec<(Text<'a>, Option<T>)>);

impl<T> Default for Entries<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T> Entries<'a, T> {
    fn into_map<U>(self, value: fn(T) -> U) -> BTreeMap<Cow<'a, str>, U> {
        self.0.into_iter().filter_map(|(key, entry)| Some((key.0, value(entry?)))).collect()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<'de, T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Entries<'de, T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        d.deserialize_map(InOrder(PhantomData))
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Key {
    Id,
    Connect,
    Subscribe,
    Unsubscribe,
    Publish,
    Presence,
    PresenceStats,
    History,
    Rpc,
    Send,
    Refresh,
    SubRefresh,
    Ping,
    #[serde(other)]
    Unknown,
}

impl<'de: 'a, 'a> Deserialize<'de> for Command<'a> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_map(OneMethod)
    }
}

struct OneMethod;

impl<'de> Visitor<'de> for OneMethod {
    type Value = Command<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a command")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Command<'de>, A::Error> {
        let (mut id, mut method) = (None, None);
        while let Some(key) = map.next_key()? {
            let given = match key {
                Key::Id => {
                    let given = map.next_value::<Option<u32>>()?.unwrap_or_default();
                    if id.replace(given).is_some() {
                        return Err(A::Error::duplicate_field("id"));
                    }
                    continue;
                }
                Key::Unknown => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                Key::Connect => value(&mut map, Method::Connect)?,
                Key::Subscribe => value(&mut map, Method::Subscribe)?,
                Key::Unsubscribe => value(&mut map, Method::Unsubscribe)?,
                Key::Publish => value(&mut map, Method::Publish)?,
                Key::Presence => value(&mut map, Method::Presence)?,
                Key::PresenceStats => value(&mut map, Method::PresenceStats)?,
                Key::History => value(&mut map, Method::History)?,
                Key::Rpc => value(&mut map, Method::Rpc)?,
                Key::Send => value(&mut map, Method::Send)?,
                Key::Refresh => value(&mut map, Method::Refresh)?,
                Key::SubRefresh => value(&mut map, Method::SubRefresh)?,
                Key::Ping => value(&mut map, |Nothing {}| Method::Ping)?,
            };
            if given.is_some() && std::mem::replace(&mut method, given).is_some() {
                return Err(A::Error::custom("two methods"));
            }
        }
        Ok(Command { id: id.unwrap_or_default(), method: method.unwrap_or(Method::Pong) })
    }
}

/// An object whose fields do not matter.
#[derive(serde::Deserialize)]
struct Nothing {}

/// The method of a key, unless its value is `null`.
fn value<'de, T, A>(map: &mut A, method: fn(T) -> Method<'de>) -> Result<Option<Method<'de>>, A::Error>
where
    T: Deserialize<'de>,
    A: MapAccess<'de>,
{
    Ok(map.next_value::<Option<Object<T>>>()?.map(|object| method(object.0)))
}
