#!/bin/sh
# Builds the library that ships, with gcc on x86-64 Linux. It uses no other library, not even libc.
set -e
cd "$(dirname "$0")"
flags="-O3 -std=gnu11 -fPIC -ffreestanding -fno-stack-protector -ffp-contract=off -fno-math-errno"
flags="$flags -fno-tree-loop-distribute-patterns -Wall -Wextra -Werror"
objects=$(mktemp -d)
for source in int8 sampling softmax; do
    gcc $flags -march=cascadelake -mprefer-vector-width=512 -DLANES=16 -DDOT=1 -DKIND=avx512 -c $source.c -o "$objects/$source-1.o"
    gcc $flags -march=haswell -mavxvnni -DLANES=8 -DDOT=1 -DKIND=avxvnni -c $source.c -o "$objects/$source-2.o"
    gcc $flags -march=haswell -DLANES=8 -DDOT=0 -DKIND=avx2 -c $source.c -o "$objects/$source-3.o"
done
gcc $flags -march=cascadelake -mamx-tile -mamx-int8 -mprefer-vector-width=512 -DLANES=16 -DDOT=1 -DTILES=1 -DKIND=amx -c int8.c \
    -o "$objects/int8-4.o"
# Sums of products may be fused here, and only here: nothing compares them bit for bit.
gcc $flags -ffp-contract=fast -march=skylake-avx512 -mprefer-vector-width=512 -DLANES=16 -DDOT=0 -DKIND=avx512 -c lstm.c -o "$objects/lstm.o"
# A test compares this with the sources, so that the library that ships is never an old one.
hash=$(cat vector.h int8.c sampling.c softmax.c lstm.c | sha256sum | cut -c1-64)
echo "const char source_sha256[] = \"$hash\";" | gcc -xc -fPIC -c - -o "$objects/source.o"
gcc -shared -nostdlib -s -o linux-x86_64.so "$objects"/*.o
rm -r "$objects"
