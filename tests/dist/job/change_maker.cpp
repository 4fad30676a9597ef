#include "fusedbun/tests/dist/job/change_maker.h"

#include "fusedbun/dist/control/control_client.h"

namespace fusedbun::testing {

class ChangeMaker::Client : public control::ControlClient {
 public:
  using ControlClient::ControlClient;
};

ChangeMaker::ChangeMaker(const std::filesystem::path& run_dir)
    : client_(std::make_unique<Client>(control::JobLocation{.run_dir = run_dir})) {}

ChangeMaker::~ChangeMaker() = default;

MadeChange ChangeMaker::set(const std::string& group, const std::string& field, double value,
                            int64_t apply_at_step) {
  control::v1::CreateChangeRequest request;
  request.set_etag("*");
  if (apply_at_step >= 0) request.mutable_change()->set_apply_at_step(apply_at_step);
  control::v1::GroupPatch& patch = *request.mutable_change()->add_patches();
  patch.set_group(group);
  control::v1::HyperparameterValues& values = *patch.mutable_values();
  const auto* descriptor = values.GetDescriptor()->FindFieldByName(field);
  if (descriptor->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_BOOL) {
    values.GetReflection()->SetBool(&values, descriptor, value != 0);
  } else {
    values.GetReflection()->SetDouble(&values, descriptor, value);
  }
  const control::v1::Change change = client_->create_change(request);
  return {change.revision(), change.effective_step()};
}

bool ChangeMaker::cancel(int64_t revision) {
  control::v1::CancelChangeRequest request;
  request.set_name("jobs/-/changes/" + std::to_string(revision));
  try {
    client_->cancel_change(request);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

int64_t ChangeMaker::current_step() {
  return client_->job().step();
}

void ChangeMaker::stop() {
  client_->stop("the test has seen enough");
}

}  // namespace fusedbun::testing
