// The code of one instruction set. Compiled once for each, with SRNN_ROUTINES the name of the table that it makes.
#include "backward.h"

namespace srnn {

extern const Routines SRNN_ROUTINES;
const Routines SRNN_ROUTINES = {
    SRNN_NAME,      forward_memory,  forward_start, project,  advance, forward_finish,
    backward_memory, backward_start, retreat,       products, backward_finish,
};

}  // namespace srnn
