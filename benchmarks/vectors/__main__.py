"""Lists the commands of this benchmark."""

import benchmarks.vectors

if __name__ == "__main__":
    print(benchmarks.vectors.__doc__)
