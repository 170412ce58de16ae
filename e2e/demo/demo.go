// Package demo shows the mesh's main job on a bare machine: a cluster comes up, the mesh is installed, a namespace is labelled, and
// what its pods say to each other goes from plain to mutual TLS. Every line it prints was checked first: a step that cannot show
// what it claims fails, and the demo with it.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/e2e/harness"
)

// Show is one run of the demo.
type Show struct {
	// Out gets progress and results.
	Out io.Writer

	root    string
	cluster *harness.Cluster // from the first step on
	results []result
}

type step struct {
	title string
	// do does the step, checks it, and returns in a few words what was seen.
	do func(ctx context.Context) (string, error)
}

type result struct {
	title, seen string
	took        time.Duration
	err         error
}

// Run plays all steps in order, stops at the first that fails, prints the table of results, and leaves the cluster up.
func (s *Show) Run(ctx context.Context) error {
	var err error
	if s.root, err = harness.Root(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("the demo needs root: it makes a cluster of namespaces, and listens on its links")
	}
	steps := append(s.stage(), s.story()...)
	for i, step := range steps {
		fmt.Fprintf(s.Out, "\n[%2d/%d] %s\n", i+1, len(steps), step.title)
		start := time.Now()
		seen, err := step.do(ctx)
		s.results = append(s.results, result{step.title, seen, time.Since(start), err})
		if err != nil {
			fmt.Fprintf(s.Out, "        FAILED: %v\n", err)
			if s.cluster != nil {
				s.cluster.Dump(context.WithoutCancel(ctx), s.Out, namespace, street)
			}
			s.table()
			return fmt.Errorf("%s: %w", step.title, err)
		}
		fmt.Fprintf(s.Out, "        %s (%s)\n", seen, time.Since(start).Round(100*time.Millisecond))
	}
	s.table()
	fmt.Fprint(s.Out, next)
	return nil
}

// table prints what was shown.
func (s *Show) table() {
	fmt.Fprintln(s.Out)
	for _, r := range s.results {
		verdict, seen := "ok", r.seen
		if r.err != nil {
			verdict, seen = "FAILED", firstLine(r.err.Error())
		}
		fmt.Fprintf(s.Out, "  %-6s  %6.1f s  %-52s  %s\n", verdict, r.took.Seconds(), r.title, seen)
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// next is what a person may want to do now.
const next = `
The cluster is still up. Try this next:

  export KUBECONFIG=$PWD/.cache/cluster/kubeconfig PATH=$PWD/bin:$PWD/.cache/bin:$PATH
  ambit check                                                          is all well?
  kubectl label namespace teahouse istio.io/dataplane-mode=ambient     put the sample into the mesh again
  ambit waypoint apply -n teahouse --enroll-namespace --wait           handle its HTTP; the route of the kettle acts again
  kubectl -n teahouse exec guest -- traffic get http://front:8080/     ask the front, which asks menu and door
  kubectl -n istio-system logs daemonset/ztunnel -f                    one line a connection, with both identities
  ip netns exec ambit-node1 tcpdump -ni eth0 tcp port 15008            what is on the wire between the nodes
  make cluster-reboot NODE=node2                                       cut a node's power, and ask again
  ambit uninstall                                                      remove the mesh; the sample goes on in plain

make demo-down removes the cluster.
`

// stage are the steps that make what the story needs.
func (s *Show) stage() []step {
	return []step{
		{"bring up a two-node Kubernetes", func(ctx context.Context) (string, error) {
			if err := s.make(ctx, "cluster-up"); err != nil {
				return "", err
			}
			var err error
			if s.cluster, err = harness.Open(ctx); err != nil {
				return "", err
			}
			nodes, err := s.cluster.Nodes()
			if err != nil {
				return "", err
			}
			if len(nodes) != 2 {
				return "", fmt.Errorf("%d nodes, want 2", len(nodes))
			}
			version, err := s.cluster.Kube.Discovery().ServerVersion()
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("Kubernetes %s, nodes %s and %s", version.GitVersion, nodes[0].Name, nodes[1].Name), nil
		}},
		{"build the programs and their images, load them", func(ctx context.Context) (string, error) {
			return "images of ztunnel, cni, istiod-lite and samples on both nodes", s.make(ctx, "build", "images", "load")
		}},
		{"install the mesh", func(ctx context.Context) (string, error) {
			if err := s.run(ctx, s.root+"/bin/ambit", "install", "--set", "tag=dev"); err != nil {
				return "", err
			}
			return "control plane, and an agent and a proxy on each node, are ready", s.cluster.AwaitMesh(ctx, ready)
		}},
	}
}

// make runs tasks of the repository.
func (s *Show) make(ctx context.Context, tasks ...string) error {
	return s.run(ctx, "make", append([]string{"--no-print-directory", "-C", s.root}, tasks...)...)
}

// run runs a program and shows what it prints.
func (s *Show) run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+s.root+"/.cache/cluster/kubeconfig")
	cmd.Stdout = &indenter{out: s.Out}
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	return nil
}

// indenter puts what a program prints below the step's title.
type indenter struct {
	out    io.Writer
	middle bool // of a line
}

func (w *indenter) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		if !w.middle {
			if _, err := io.WriteString(w.out, "        | "); err != nil {
				return 0, err
			}
		}
		if _, err := io.WriteString(w.out, line); err != nil {
			return 0, err
		}
		w.middle = !strings.HasSuffix(line, "\n")
	}
	return len(p), nil
}
