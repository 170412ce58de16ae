// Package product names the images of this repository, product and test, and builds them as OCI archives.
package product

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/cluster/debian"
	"github.com/ambit-mesh/ambit/e2e/cluster/image"
	"github.com/ambit-mesh/ambit/e2e/cluster/pki"
)

// Image is an image of this repository: its reference is docker.io/ambit/<Name>:<tag>, its archive <Name>.tar.
type Image struct {
	Name       string
	Reference  string   // the whole one, where others' manifests name the image
	Module     string   // folder, below the repository's, of the module that Programs are packages of
	Programs   []string // packages of the module; "dir/..." is every program below dir. Each goes to /usr/local/bin.
	Entrypoint []string
	User       string // "" is root
	Userland   []string
	Links      map[string]string
	KeyPair    string // path without its suffix of a certificate (.crt) and its key (.key) for any name, signed by nobody known
	Test       bool   // only tests and the demo use it
	OnRequest  bool   // built only when it is named
}

// Images are all of them.
func Images() []Image {
	return []Image{
		{Name: "ztunnel", Programs: []string{"./ztunnel/cmd/ztunnel"}, Entrypoint: []string{"/usr/local/bin/ztunnel"}},
		{Name: "istiod-lite", Programs: []string{"./istiod-lite/cmd/istiod-lite"}, Entrypoint: []string{"/usr/local/bin/istiod-lite"}, User: "65532:65532"},
		{Name: "waypoint", Programs: []string{"./waypoint/cmd/waypoint"}, Entrypoint: []string{"/usr/local/bin/waypoint"}, User: "1337:1337"},
		{
			Name: "cni", Programs: []string{"./cni/cmd/cni-agent", "./cni/cmd/ambit-cni"}, Entrypoint: []string{"/usr/local/bin/cni-agent"},
			Userland: []string{
				"/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi", "/usr/lib/*-linux-gnu/xtables",
				"/usr/sbin/ipset", "/usr/sbin/nft", "/usr/sbin/conntrack", "/sbin/ip", "/etc/protocols", "/etc/services",
			},
			Links: iptablesNames(),
		},
		// Manifests name the program that they want of it.
		{Name: "samples", Programs: []string{"./deploy/samples/cmd/..."}, User: "65532:65532", Test: true},
		// What the Gateway API's conformance suite v1.7.0 runs in its mesh tests (mesh/manifests.yaml): Istio's test server and client.
		{
			Name: "echo-advanced", Reference: "registry.k8s.io/gateway-api/conformance/echo-advanced:v0.1.0",
			Module:     "e2e/conformance/echo",
			Programs:   []string{"istio.io/istio/pkg/test/echo/cmd/server", "istio.io/istio/pkg/test/echo/cmd/client"},
			Entrypoint: []string{"/usr/local/bin/server"}, User: "1338:1338", KeyPair: "/cert", Test: true, OnRequest: true,
		},
	}
}

// Packages are the Debian packages that the images' userland comes from.
func Packages() []string {
	return []string{"iptables", "nftables", "ipset", "conntrack", "iproute2", "netbase"}
}

// iptablesNames are the names that the two programs behind iptables go by. Without a suffix it is nft, Debian's default,
// whatever this machine's alternatives say.
func iptablesNames() map[string]string {
	links := map[string]string{}
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			links["/usr/sbin/"+family+verb] = "xtables-nft-multi"
			links["/usr/sbin/"+family+"-nft"+verb] = "xtables-nft-multi"
			links["/usr/sbin/"+family+"-legacy"+verb] = "xtables-legacy-multi"
		}
	}
	return links
}

// Builder builds images of the repository.
type Builder struct {
	Repository string    // absolute
	Dir        string    // where archives go, absolute
	Report     io.Writer // progress
	// Version is a release, such as v0.1.0: what the programs say of themselves and the images' tag. Empty: the programs say
	// what git describes, and the tag is dev.
	Version string
}

// Build builds the named images, or all but those on request if none is named, and returns the archives. One that fails does not keep the
// others from being built.
func (b *Builder) Build(ctx context.Context, names []string) ([]string, error) {
	chosen, err := choose(names)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(chosen, func(i Image) bool { return len(i.Userland) > 0 }) {
		if err := debian.Install(ctx, Packages(), b.Report); err != nil {
			return nil, err
		}
	}
	var archives []string
	var errs []error
	for _, i := range chosen {
		begin := time.Now()
		archive, err := b.build(ctx, i)
		if err != nil {
			errs = append(errs, fmt.Errorf("build image %s: %w", i.Name, err))
			continue
		}
		fmt.Fprintf(b.Report, "  %-12s %s\n", i.Name, time.Since(begin).Round(100*time.Millisecond))
		archives = append(archives, archive)
	}
	return archives, errors.Join(errs...)
}

func choose(names []string) ([]Image, error) {
	all := Images()
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(i Image) bool { return i.OnRequest }), nil
	}
	var chosen []Image
	for _, name := range names {
		i := slices.IndexFunc(all, func(i Image) bool { return i.Name == name })
		if i < 0 {
			var known []string
			for _, i := range all {
				known = append(known, i.Name)
			}
			return nil, fmt.Errorf("no image %q; there are %s", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

func (b *Builder) build(ctx context.Context, i Image) (string, error) {
	dir := filepath.Join(b.Dir, "programs", i.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	files, err := b.compile(ctx, i, dir)
	if err != nil {
		return "", err
	}
	if i.KeyPair != "" {
		pair, err := issue(i, dir)
		if err != nil {
			return "", err
		}
		files = append(files, pair...)
	}
	archive := filepath.Join(b.Dir, i.Name+".tar")
	return archive, image.Write(image.Definition{
		Name:       b.reference(i),
		Files:      files,
		Entrypoint: i.Entrypoint,
		User:       i.User,
		Userland:   i.Userland,
		Links:      i.Links,
	}, archive)
}

// reference is an image's name and tag. Manifests of tests name test images, of whatever version, by "dev".
func (b *Builder) reference(i Image) string {
	switch {
	case i.Reference != "":
		return i.Reference
	case b.Version == "" || i.Test:
		return "docker.io/ambit/" + i.Name + ":dev"
	}
	return "docker.io/ambit/" + i.Name + ":" + b.Version
}

// issue makes the certificate and key that a test server wants to find in its image.
func issue(i Image, dir string) ([]image.File, error) {
	authority, err := pki.NewAuthority(i.Name)
	if err != nil {
		return nil, err
	}
	pair, err := authority.Issue(pki.Subject{Name: i.Name, Server: true, DNS: []string{"*", "localhost"}})
	if err != nil {
		return nil, err
	}
	var files []image.File
	for suffix, data := range map[string][]byte{".crt": pair.Cert, ".key": pair.Key} {
		path := filepath.Join(dir, "pair"+suffix)
		if err := os.WriteFile(path, data, 0o644); err != nil { // it proves nothing to anybody
			return nil, err
		}
		files = append(files, image.File{From: path, To: i.KeyPair + suffix})
	}
	return files, nil
}

// compile builds the image's programs into dir. They stay there, where the next build finds those that are up to date.
func (b *Builder) compile(ctx context.Context, i Image, dir string) ([]image.File, error) {
	list, err := b.run(ctx, i.Module, "go", append([]string{"list", "-f", `{{if eq .Name "main"}}{{.ImportPath}}{{end}}`}, i.Programs...)...)
	if err != nil {
		return nil, err
	}
	packages := strings.Fields(list)
	if len(packages) == 0 {
		return nil, fmt.Errorf("no program in %s", strings.Join(i.Programs, " "))
	}
	version := b.Version
	if version == "" {
		if version, err = b.run(ctx, "", "git", "describe", "--tags", "--always", "--dirty"); err != nil {
			version = "dev" // not a clone
		}
	}
	args := []string{"build", "-trimpath", "-ldflags", "-s -w -X github.com/ambit-mesh/ambit/api/build.version=" + strings.TrimSpace(version), "-o", dir + "/"}
	if _, err := b.run(ctx, i.Module, "go", append(args, packages...)...); err != nil {
		return nil, err
	}
	var files []image.File
	for _, pkg := range packages {
		name := filepath.Base(pkg)
		files = append(files, image.File{From: filepath.Join(dir, name), To: "/usr/local/bin/" + name})
	}
	return files, nil
}

// run runs a program in a folder of the repository and returns what it prints.
func (b *Builder) run(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = filepath.Join(b.Repository, folder)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), nil
}
