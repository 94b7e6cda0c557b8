//! What the compiled descriptors say, a line each.

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};

const PACKAGE: &str = "tidelog.v1";

/// The files of the package.
pub(crate) fn files() -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(tidelog_proto::FILE_DESCRIPTOR_SET).unwrap();
    let files: Vec<_> = set
        .file
        .into_iter()
        .filter(|file| file.package() == PACKAGE)
        .collect();
    assert_eq!(files.len(), 5, "record, topics, log, cluster and groups");
    files
}

#[test]
fn every_name_number_type_and_label_stays() {
    let mut lines = Vec::new();
    for file in files() {
        for message in &file.message_type {
            add_message(&mut lines, message.name(), message);
        }
        for declared in &file.enum_type {
            for value in &declared.value {
                let (name, number) = (value.name(), value.number());
                lines.push(format!("value {} {number} {name}", declared.name()));
            }
        }
        for service in &file.service {
            for method in &service.method {
                let stream = |streams| if streams { "stream " } else { "" };
                lines.push(format!(
                    "method {}.{} {}{} -> {}{}",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    local(method.input_type()),
                    stream(method.server_streaming()),
                    local(method.output_type()),
                ));
            }
        }
    }
    crate::golden::check("tidelog.v1.api", &lines);
}

fn add_message(lines: &mut Vec<String>, name: &str, message: &DescriptorProto) {
    assert!(message.enum_type.is_empty(), "no enums inside of {name}");
    lines.push(format!("message {name}"));
    for field in &message.field {
        lines.push(format!(
            "field {name} {} {}{} {}",
            field.number(),
            presence(message, field),
            type_of(field),
            field.name()
        ));
    }
    // The entries of maps.
    for nested in &message.nested_type {
        add_message(lines, &format!("{name}.{}", nested.name()), nested);
    }
}

/// Whether a field may be absent or come again, as it is written in front of its type.
fn presence(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    if field.proto3_optional() {
        return "optional ".to_owned();
    }
    if let Some(index) = field.oneof_index {
        let index = usize::try_from(index).unwrap();
        return format!("oneof {} ", message.oneof_decl[index].name());
    }
    match field.label() {
        Label::Repeated => "repeated ".to_owned(),
        Label::Optional => String::new(),
        Label::Required => panic!("proto3 requires nothing"),
    }
}

fn type_of(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum => local(field.type_name()).to_owned(),
        scalar => scalar
            .as_str_name()
            .trim_start_matches("TYPE_")
            .to_lowercase(),
    }
}

/// A type's name without the package, if it is that of the API.
fn local(name: &str) -> &str {
    let name = name.trim_start_matches('.');
    name.strip_prefix(PACKAGE)
        .and_then(|name| name.strip_prefix('.'))
        .unwrap_or(name)
}
