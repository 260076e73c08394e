// Light English stemming: plurals, -ing, -ed and the silent e that they leave behind.
#pragma once

#include <cstddef>

namespace mc {

// Shortens `word`, `length` lower-case ASCII letters, in place; returns the new length (never
// larger). Forms of one word meet: make/makes/making, city/cities, stop/stopped/stopping.
// Not undone: -er, -ly, -ness and irregular forms; names may lose an ending, which does no harm
// as text and query lose the same one.
// Source: the S-stemmer of Harman 1991 and steps 1b and 5a of Porter 1980.
size_t stem_word(char* word, size_t length);

}  // namespace mc
