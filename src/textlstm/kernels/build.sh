#!/bin/sh
# Builds the library that ships, from int8.c, with gcc on x86-64 Linux. It uses no library, not even libc.
set -e
cd "$(dirname "$0")"
flags="-O3 -std=gnu11 -fPIC -ffreestanding -fno-stack-protector -ffp-contract=off -fno-math-errno -fno-tree-loop-distribute-patterns -Wall -Wextra -Werror"
objects=$(mktemp -d)
gcc $flags -march=cascadelake -mprefer-vector-width=512 -DLANES=16 -DDOT=1 -DKIND=avx512 -c int8.c -o "$objects/1.o"
gcc $flags -march=haswell -mavxvnni -DLANES=8 -DDOT=1 -DKIND=avxvnni -c int8.c -o "$objects/2.o"
gcc $flags -march=haswell -DLANES=8 -DDOT=0 -DKIND=avx2 -c int8.c -o "$objects/3.o"
# A test compares this with the source, so that the library that ships is never an old one.
echo "const char source_sha256[] = \"$(sha256sum int8.c | cut -c1-64)\";" | gcc -xc -fPIC -c - -o "$objects/4.o"
gcc -shared -nostdlib -s -o linux-x86_64.so "$objects"/?.o
rm -r "$objects"
