"""Lists the commands of this benchmark."""

import benchmarks.languages

if __name__ == "__main__":
    print(benchmarks.languages.__doc__)
