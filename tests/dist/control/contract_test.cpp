// The contract stays readable for those who speak an earlier one: nothing of the committed descriptor is removed, renumbered or
// retyped. After additions, accept them: FUSEDBUN_ACCEPT_CONTRACT=1 control_test --gtest_filter='Contract*' writes
// proto/fusedbun/control/v1/control.binpb anew; commit it with the change.
#include <google/protobuf/descriptor.pb.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

#include "fusedbun/control/v1/control.pb.h"
#include "fusedbun/control/v1/error_details.pb.h"

namespace fusedbun::control {
namespace {

using google::protobuf::DescriptorProto;
using google::protobuf::EnumDescriptorProto;
using google::protobuf::FieldDescriptorProto;
using google::protobuf::FileDescriptorProto;
using google::protobuf::FileDescriptorSet;

FileDescriptorSet present_contract() {
  FileDescriptorSet files;
  v1::Job::descriptor()->file()->CopyTo(files.add_file());
  v1::ErrorInfo::descriptor()->file()->CopyTo(files.add_file());
  return files;
}

/// What a program of today's wire relies on, one line per fact: "Job.state = 2 enum fusedbun.control.v1.Job.State optional".
using Facts = std::map<std::string, std::string>;

void add_enum(const std::string& scope, const EnumDescriptorProto& type, Facts& facts) {
  for (const auto& value : type.value())
    facts[scope + type.name() + " value " + std::to_string(value.number())] = value.name();
}

void add_message(const std::string& scope, const DescriptorProto& type, Facts& facts) {
  const std::string name = scope + type.name();
  facts[name] = "message";
  for (const FieldDescriptorProto& field : type.field()) {
    facts[name + " field " + std::to_string(field.number())] =
        field.name() + " " + FieldDescriptorProto::Type_Name(field.type()) + " " +
        field.type_name() + " " + FieldDescriptorProto::Label_Name(field.label()) +
        (field.proto3_optional() ? " with presence" : "") +
        (field.has_oneof_index() && !field.proto3_optional()
             ? " in oneof " + type.oneof_decl(field.oneof_index()).name()
             : "");
  }
  for (const DescriptorProto& nested : type.nested_type()) add_message(name + ".", nested, facts);
  for (const EnumDescriptorProto& nested : type.enum_type()) add_enum(name + ".", nested, facts);
}

Facts facts_of(const FileDescriptorSet& files) {
  Facts facts;
  for (const FileDescriptorProto& file : files.file()) {
    const std::string scope = file.package() + ".";
    for (const DescriptorProto& type : file.message_type()) add_message(scope, type, facts);
    for (const EnumDescriptorProto& type : file.enum_type()) add_enum(scope, type, facts);
    for (const auto& service : file.service()) {
      for (const auto& method : service.method()) {
        facts[scope + service.name() + "/" + method.name()] =
            method.input_type() + " -> " + method.output_type() +
            (method.client_streaming() ? " client streams" : "") +
            (method.server_streaming() ? " server streams" : "");
      }
    }
  }
  return facts;
}

TEST(Contract, AFieldThatMovesIntoAOneofIsAnotherContract) {
  FileDescriptorSet moved = present_contract();
  for (DescriptorProto& type : *moved.mutable_file(0)->mutable_message_type()) {
    if (type.name() == "Change") type.mutable_field(4)->set_oneof_index(0);  // reason, into "when"
  }
  EXPECT_NE(facts_of(moved), facts_of(present_contract()));
}

TEST(Contract, IsWireCompatibleWithTheCommittedOne) {
  const FileDescriptorSet present = present_contract();
  if (std::getenv("FUSEDBUN_ACCEPT_CONTRACT") != nullptr) {
    std::ofstream file(FUSEDBUN_CONTRACT, std::ios::binary);
    ASSERT_TRUE(present.SerializeToOstream(&file));
  }
  FileDescriptorSet committed;
  std::ifstream file(FUSEDBUN_CONTRACT, std::ios::binary);
  ASSERT_TRUE(committed.ParseFromIstream(&file)) << FUSEDBUN_CONTRACT;
  const Facts now = facts_of(present);
  const Facts before = facts_of(committed);
  ASSERT_GT(before.size(), 200U);
  for (const auto& [what, how] : before) {
    const auto found = now.find(what);
    const std::string kept = found == now.end() ? "gone" : found->second;
    EXPECT_EQ(kept, how) << what << ": programs rely on it as it was";
  }
  for (const auto& [what, how] : now) {
    EXPECT_TRUE(before.contains(what))
        << what << " (" << how << ") is new: accept it as the top of this file says";
  }
}

}  // namespace
}  // namespace fusedbun::control
