// First process of a pod's sandbox: waits for children that lost their parent, ends when told to.
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>

int main(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, NULL);
  for (int got; sigwait(&set, &got) == 0;) {
    if (got != SIGCHLD) return 0;
    while (waitpid(-1, NULL, WNOHANG) > 0) {}
  }
  return 1;
}
