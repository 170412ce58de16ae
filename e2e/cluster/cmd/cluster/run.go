package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"

	"github.com/ambit-mesh/ambit/e2e/cluster/lifecycle"
	"github.com/ambit-mesh/ambit/e2e/cluster/plan"
	"github.com/ambit-mesh/ambit/e2e/cluster/product"
	"golang.org/x/sys/unix"
)

const usage = `cluster runs a real two-node Kubernetes on this machine. All but images needs root.

  cluster up [--family dual|ipv4|ipv6] [--proxy-mode iptables|nftables]
                                                start it; the first time builds its programs (about 10 minutes)
  cluster build                                 only build its programs, and print the folder that they are in
  cluster down                                  remove it, and whatever an earlier one left
  cluster reboot NODE                           cut the node's power and start it again with its disk
  cluster images [--version V] [--of TREE] [IMAGE...]
                                                build images as OCI archives in .cache/images; if none is named, all
                                                but echo-advanced, which only the conformance suite wants
  cluster load [ARCHIVE...]                     import images on both nodes; all that were built if none is named
  cluster exec MACHINE -- COMMAND [ARG...]      run a command in the namespaces of node1, node2 or cp

Programs are kept in AMBIT_CACHE, or else in ambit below the user's cache folder.
What runs is described in .cache/cluster/state.json; logs are in .cache/cluster/logs.
`

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		args = []string{"help"}
	}
	verb, args := args[0], args[1:]
	if verb == "help" || verb == "-h" || verb == "--help" {
		_, err := io.WriteString(stdout, usage)
		return err
	}
	repository, err := findRepository()
	if err != nil {
		return err
	}
	c := &lifecycle.Cluster{Repository: repository, Report: stderr}
	flags := flag.NewFlagSet("cluster "+verb, flag.ContinueOnError)
	flags.SetOutput(stderr)
	var o lifecycle.UpOptions
	if verb == "up" {
		flags.StringVar(&o.ProxyMode, "proxy-mode", "iptables", "kube-proxy's mode: iptables or nftables")
		flags.StringVar((*string)(&o.Family), "family", string(plan.Dual), "of nodes, pods and services: dual, ipv4 or ipv6")
	}
	var version, of string
	if verb == "images" {
		flags.StringVar(&of, "of", "", "build those of another tree of this repository, into its own .cache/images")
		flags.StringVar(&version, "version", "", "build as this release, which is the images' tag too; empty: as dev")
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	// Files that the caller has open beyond the three standard ones, such as a lock, must not live on in a cluster.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("keep open files from children: %w", err)
	}
	args = flags.Args()
	switch verb {
	case "up":
		return c.Up(ctx, o)
	case "build":
		programs, err := c.Build(ctx)
		if err == nil {
			fmt.Fprintln(stdout, programs)
		}
		return err
	case "down":
		return c.Down(ctx)
	case "reboot":
		if len(args) != 1 {
			return errors.New("reboot: name one node: node1 or node2 (make cluster-reboot NODE=node2)")
		}
		return c.Reboot(ctx, args[0])
	case "images":
		b := product.Builder{Repository: repository, Dir: c.ImageDir(), Report: stderr, Version: version}
		if of != "" {
			if b.Repository, err = filepath.Abs(of); err != nil {
				return err
			}
			b.Dir = filepath.Join(b.Repository, ".cache", "images")
		}
		archives, err := b.Build(ctx, args)
		for _, archive := range archives {
			fmt.Fprintln(stdout, archive)
		}
		return err
	case "load":
		return c.Load(ctx, args)
	case "exec":
		if len(args) > 1 && args[1] == "--" {
			args = append(args[:1], args[2:]...)
		}
		if len(args) < 2 {
			return errors.New("exec: want a machine and a command: cluster exec node1 -- ip addr")
		}
		return c.Exec(args[0], args[1:])
	}
	return fmt.Errorf("unknown command %q; cluster help lists them", verb)
}

// findRepository looks for the repository from the current folder upwards.
func findRepository() (string, error) {
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := at; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "e2e", "cluster", "go.mod")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", fmt.Errorf("%s is not in a clone of the repository", at)
		}
	}
}
