// Package debian installs what is missing of Debian's packages.
package debian

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Install installs those of the packages that are not there. On a machine without dpkg it does nothing: what is missing
// then shows where it is used.
func Install(ctx context.Context, packages []string, report io.Writer) error {
	if _, err := exec.LookPath("dpkg-query"); err != nil {
		return nil
	}
	// It exits with 1 when it does not know one of them, and still lists the others.
	out, _ := exec.CommandContext(ctx, "dpkg-query", append([]string{"--show", "--showformat", "${Package} ${db:Status-Status}\n"}, packages...)...).Output()
	missing := missing(packages, string(out))
	if len(missing) == 0 {
		return nil
	}
	begin := time.Now()
	fmt.Fprintf(report, "installing Debian packages: %s\n", strings.Join(missing, " "))
	install := append([]string{"install", "--yes", "--no-install-recommends"}, missing...)
	for _, args := range [][]string{{"update"}, install} {
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "DPkg::Lock::Timeout=300"}, args...)...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("install packages %s: apt-get %s: %w\n%s", strings.Join(missing, " "), args[0], err, bytes.TrimSpace(out))
		}
	}
	fmt.Fprintf(report, "  installed in %s\n", time.Since(begin).Round(100*time.Millisecond))
	return nil
}

// missing returns the packages that the listing ("name status" per line) does not show as installed.
func missing(packages []string, listing string) []string {
	var out []string
	lines := strings.Split(listing, "\n")
	for _, p := range packages {
		if !slices.Contains(lines, p+" installed") {
			out = append(out, p)
		}
	}
	return out
}
