package product

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	all, err := choose(nil)
	if err != nil || len(all) != len(Images()) {
		t.Fatalf("choose() = %d images, %v", len(all), err)
	}
	some, err := choose([]string{"cni", "ztunnel"})
	if err != nil || len(some) != 2 || some[0].Name != "cni" || some[1].Name != "ztunnel" {
		t.Errorf("choose(cni, ztunnel) = %v, %v", some, err)
	}
	if _, err := choose([]string{"nonesuch"}); err == nil || !strings.Contains(err.Error(), "ztunnel") {
		t.Errorf("error is %v, want one that lists the images", err)
	}
}

// TestDockerfilesMakeTheSameImages compares what those who have a builder get with what `make images` makes.
func TestDockerfilesMakeTheSameImages(t *testing.T) {
	for _, i := range Images() {
		if i.Name == "samples" { // a test image
			continue
		}
		path := filepath.Join("..", "..", "..", "deploy", "images", i.Name, "Dockerfile")
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
			continue
		}
		text := string(data)
		for _, program := range i.Programs {
			if !strings.Contains(text, program) {
				t.Errorf("%s does not build %s", path, program)
			}
		}
		if want := `ENTRYPOINT ["` + strings.Join(i.Entrypoint, `", "`) + `"]`; !strings.Contains(text, want) {
			t.Errorf("%s has no %s", path, want)
		}
		if i.User != "" && !strings.Contains(text, "USER "+i.User) {
			t.Errorf("%s does not name user %s", path, i.User)
		}
		if len(i.Userland) > 0 {
			for _, pkg := range Packages() {
				if !slices.Contains(strings.Fields(text), pkg) {
					t.Errorf("%s does not install %s", path, pkg)
				}
			}
		}
	}
}

func TestIptablesNames(t *testing.T) {
	links := iptablesNames()
	for name, want := range map[string]string{
		"/usr/sbin/iptables": "xtables-nft-multi", "/usr/sbin/ip6tables-legacy-restore": "xtables-legacy-multi",
		"/usr/sbin/iptables-nft-save": "xtables-nft-multi", "/usr/sbin/ip6tables-save": "xtables-nft-multi",
	} {
		if links[name] != want {
			t.Errorf("%s is %q, want %s", name, links[name], want)
		}
	}
	for name := range links {
		// Debian has every one of these names too; a wrong one would be a program that nobody calls.
		if _, err := os.Lstat(name); err != nil && exists("/usr/sbin/xtables-nft-multi") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
