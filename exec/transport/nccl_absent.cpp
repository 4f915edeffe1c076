// In place of the CUDA module where there is none.
#include "exec/transport/nccl_api.h"
#include "sim/schedule/error.h"

namespace dualpipe {

std::shared_ptr<Nccl> cuda_nccl() {
  throw InputError(
      "dualpipe-run was built without CUDA, so that its ranks cannot reach each other over NCCL (--transport nccl); "
      "leave it out, or use --transport mpi");
}

}  // namespace dualpipe
