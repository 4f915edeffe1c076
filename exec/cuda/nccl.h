// The Nccl of exec/transport by NCCL itself.
#pragma once

#include <memory>

#include "dualpipe/exec/transport/nccl_api.h"

namespace dualpipe::detail::cuda {

[[nodiscard]] std::shared_ptr<Nccl> make_nccl();

}  // namespace dualpipe::detail::cuda
