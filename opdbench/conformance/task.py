def check_task(cls): yield
